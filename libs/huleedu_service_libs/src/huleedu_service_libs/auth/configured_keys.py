"""The keys that a service's settings hold, by value or as a file."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

from huleedu_service_libs.auth.key_server_url import is_web_address
from huleedu_service_libs.auth.key_statistics import KeyStatistics
from huleedu_service_libs.auth.verification_keys import (
    HMAC_HASHES,
    UnusableKeyError,
    VerificationKey,
    verification_key,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

    from pydantic import SecretStr

    from huleedu_service_libs.auth.jwt_settings import JWTValidationSettings

__all__ = [
    "ConfiguredKeys",
    "KeyConfigurationError",
    "KeyText",
    "check_key_source",
    "key_texts",
    "parse_keys",
]

logger = logging.getLogger(__name__)

_REREAD_INTERVAL_S: Final = 1.0
_MAX_FILE_CHARS: Final = 65_536


class KeyConfigurationError(Exception):
    """No token can be verified with these settings; the text names the variables, quotes no key."""

    def __init__(self, variable: str, message: str) -> None:
        super().__init__(message)
        self.variable = variable


@dataclass(frozen=True, slots=True)
class KeyText:
    """A key as it was configured."""

    variable: str
    text: str = field(repr=False)


class ConfiguredKeys:
    """The keys of `settings`, whatever key id a token names; an async context manager.

    A file is read again when it is asked for after a second. Once it has held a key, the last one
    counts until there is another: whoever copies a file over it empties it first.
    """

    def __init__(self, settings: JWTValidationSettings) -> None:
        self._settings = settings
        self._texts: Sequence[KeyText] = ()
        self._keys: tuple[VerificationKey, ...] = ()
        self._read_again_at = float("-inf")
        self._is_broken = False
        """Whether there is a key, and the file that it came from is of no use now."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None

    @property
    def problem(self) -> str | None:
        """Why there is no key."""
        try:
            self.check()
        except KeyConfigurationError as problem:
            return str(problem)
        return None

    def check(self) -> None:
        """Raises KeyConfigurationError if there is no key."""
        self._current()

    async def candidates(self, key_id: str | None) -> tuple[VerificationKey, ...]:  # noqa: ARG002
        """All there are. Raises KeyConfigurationError."""
        return self._current()

    def statistics(self) -> KeyStatistics:
        """How many there are now."""
        return KeyStatistics(keys=0 if self.problem else len(self._keys))

    def _current(self) -> tuple[VerificationKey, ...]:
        """The same tuple until a key has changed; raises KeyConfigurationError without any."""
        now = time.monotonic()
        if now >= self._read_again_at:
            try:
                self._read()
            except KeyConfigurationError as problem:
                if not self._keys:
                    raise
                if not self._is_broken:
                    logger.warning("%s; the key that it held before still counts", problem)
                self._is_broken = True
            can_change = self._settings.JWT_PUBLIC_KEY_PATH is not None
            self._read_again_at = now + _REREAD_INTERVAL_S if can_change else float("inf")
        return self._keys

    def _read(self) -> None:
        texts = key_texts(self._settings)
        is_other = texts != self._texts
        if is_other:
            keys = parse_keys(texts, self._settings.JWT_ALGORITHM)
            if self._keys:
                logger.info("JWT_PUBLIC_KEY_PATH holds another key, which counts from now on")
            self._keys, self._texts = keys, texts
        elif self._is_broken:
            logger.info("JWT_PUBLIC_KEY_PATH holds its key again")
        self._is_broken = False


def check_key_source(settings: JWTValidationSettings) -> None:
    """Raises KeyConfigurationError unless exactly one source of keys is named for the algorithm."""
    if settings.JWT_ALGORITHM in HMAC_HASHES:
        if settings.JWT_JWKS_URL:
            raise KeyConfigurationError(
                "JWT_JWKS_URL",
                f"JWT_JWKS_URL is set and JWT_ALGORITHM is {settings.JWT_ALGORITHM}, whose secret "
                "nobody publishes: unset one of them",
            )
        return
    named = [
        name
        for name, value in (
            ("JWT_PUBLIC_KEY", settings.JWT_PUBLIC_KEY),
            ("JWT_PUBLIC_KEY_PATH", settings.JWT_PUBLIC_KEY_PATH),
            ("JWT_JWKS_URL", settings.JWT_JWKS_URL),
        )
        if value is not None and str(value).strip()
    ]
    if not named:
        raise KeyConfigurationError(
            "JWT_PUBLIC_KEY",
            "JWT_PUBLIC_KEY or JWT_PUBLIC_KEY_PATH or JWT_JWKS_URL must be set for "
            f"{settings.JWT_ALGORITHM}",
        )
    if len(named) > 1:
        raise KeyConfigurationError(
            named[0], f"{' and '.join(named)} are set: only one of them can say what the key is"
        )
    if settings.JWT_JWKS_URL and not is_web_address(settings.JWT_JWKS_URL):
        raise KeyConfigurationError("JWT_JWKS_URL", "JWT_JWKS_URL is not an http or https address")


def key_texts(settings: JWTValidationSettings) -> tuple[KeyText, ...]:
    """What the settings hold for the algorithm, the current key first; a file is read now.

    Raises KeyConfigurationError, also where the keys come from JWT_JWKS_URL.
    """
    check_key_source(settings)
    if settings.JWT_ALGORITHM in HMAC_HASHES:
        return _secrets(settings)
    if settings.JWT_JWKS_URL:
        raise KeyConfigurationError(
            "JWT_JWKS_URL", "JWT_JWKS_URL is set: TokenVerifier is what fetches keys from there"
        )
    if settings.JWT_PUBLIC_KEY_PATH is not None:
        return (KeyText("JWT_PUBLIC_KEY_PATH", _file_text(settings.JWT_PUBLIC_KEY_PATH)),)
    return (KeyText("JWT_PUBLIC_KEY", (settings.JWT_PUBLIC_KEY or "").replace("\\n", "\n")),)


def parse_keys(texts: Sequence[KeyText], algorithm: str) -> tuple[VerificationKey, ...]:
    """Raises KeyConfigurationError naming the variable whose text is no key for the algorithm."""
    keys = []
    for configured in texts:
        try:
            keys.append(verification_key(configured.text, algorithm))
        except UnusableKeyError as error:
            raise KeyConfigurationError(
                configured.variable, f"{configured.variable} {error}"
            ) from None
    return tuple(keys)


def _secrets(settings: JWTValidationSettings) -> tuple[KeyText, ...]:
    current = _revealed(settings.JWT_SECRET_KEY)
    if not current.strip():
        raise KeyConfigurationError(
            "JWT_SECRET_KEY", f"JWT_SECRET_KEY must be set for {settings.JWT_ALGORITHM}"
        )
    previous = _revealed(settings.JWT_SECRET_KEY_PREVIOUS)
    texts = (KeyText("JWT_SECRET_KEY", current), KeyText("JWT_SECRET_KEY_PREVIOUS", previous))
    return texts if previous.strip() else texts[:1]


def _revealed(secret: SecretStr | None) -> str:
    return secret.get_secret_value() if secret else ""


def _file_text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(_MAX_FILE_CHARS)
    except (OSError, ValueError) as error:
        raise KeyConfigurationError(
            "JWT_PUBLIC_KEY_PATH", f"JWT_PUBLIC_KEY_PATH cannot be read: {type(error).__name__}"
        ) from None
