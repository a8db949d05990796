"""Keys that an issuer publishes (JWKS), kept at hand.

What always holds:

1. One task fetches, one request at a time. A token waits for it only while there is no key at all,
   or if it names a key that is not in the set, and then no longer than `MAX_WAIT_S`.
2. However many tokens name unknown keys, they cause one fetch per JWT_JWKS_COOLDOWN_SECONDS.
3. Only a set with a usable key replaces the one before, and replaces all of it: a key that was
   withdrawn verifies nothing from then on. Whatever else the server does (be away, hang, redirect,
   answer garbage or an empty set), the keys that are there stay, however long that lasts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from typing import TYPE_CHECKING, Final, NoReturn, Self

from huleedu_service_libs.auth.configured_keys import KeyConfigurationError
from huleedu_service_libs.auth.key_set import KeySet, UnusableKeySetError, parse_key_set
from huleedu_service_libs.auth.key_statistics import KeyStatistics

if TYPE_CHECKING:
    from types import TracebackType

    from huleedu_service_libs.auth.jwt_settings import JWTValidationSettings
    from huleedu_service_libs.auth.key_set_fetcher import KeySetFetcher
    from huleedu_service_libs.auth.verification_keys import VerificationKey

__all__ = ["FETCH_TIMEOUT_S", "MAX_WAIT_S", "NoKeySetError", "PublishedKeys"]

logger = logging.getLogger(__name__)

FETCH_TIMEOUT_S: Final = 5.0
MAX_WAIT_S: Final = 2.0
"""A handshake waits no longer for keys: less than a fetch may take."""

RETRY_FIRST_DELAY_S: Final = 0.5
RETRY_MAX_DELAY_S: Final = 10.0

# The next set is there before this one is too old, and not asked for by all processes at once.
_EARLIEST_REFRESH: Final = 0.7
_LATEST_REFRESH: Final = 0.9


class NoKeySetError(Exception):
    """No set of keys has ever come. Why is nothing that a client could use."""

    def __init__(self) -> None:
        super().__init__("no keys have come from the key server")


class PublishedKeys:
    """The key set at JWT_JWKS_URL, fetched and kept fresh while this context manager is entered.

    To enter neither waits for the key server nor fails for want of it.
    """

    def __init__(self, url: str, settings: JWTValidationSettings) -> None:
        self._url = url
        self._algorithm = settings.JWT_ALGORITHM
        self._cache_s = settings.JWT_JWKS_CACHE_SECONDS
        self._cooldown_s = settings.JWT_JWKS_COOLDOWN_SECONDS
        self._keys: KeySet | None = None
        self._document = b""
        self._fetched_at = float("-inf")
        self._fetches_succeeded = 0
        self._fetches_failed = 0
        self._failures_in_a_row = 0
        self._why = "it has not answered yet"
        self._cannot_fetch: str | None = None
        self._is_fetching = False
        self._wanted = asyncio.Event()
        self._ended = asyncio.Event()
        self._cooled_at = float("-inf")
        self._task: asyncio.Task[NoReturn] | None = None

    async def __aenter__(self) -> Self:
        fetcher = self._fetcher()
        if fetcher is not None:
            self._is_fetching = True
            self._task = asyncio.create_task(self._keep_fresh(fetcher), name="key set")
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.result()

    @property
    def problem(self) -> str | None:
        """Why there is no key; None if there is one, however old."""
        if self._cannot_fetch is not None:
            return self._cannot_fetch
        if self._keys is None:
            return f"no key set has come from JWT_JWKS_URL: {self._why}"
        return None

    def check(self) -> None:
        """Raises KeyConfigurationError if no set can ever be fetched."""
        if self._cannot_fetch is not None:
            raise KeyConfigurationError("JWT_JWKS_URL", self._cannot_fetch)

    async def candidates(self, key_id: str | None) -> tuple[VerificationKey, ...]:
        """The keys that a token with this key id may be signed with, none for an unknown one.

        Raises NoKeySetError, and RuntimeError if this has not been entered.
        """
        if self._keys is not None:
            found = self._keys.candidates(key_id)
            if found or key_id is None or not self._may_wait_for_another():
                return found
        elif self._task is None:
            raise RuntimeError("enter the context manager first: it fetches the keys")
        if self._keys is not None or self._is_fetching:
            await self._until_fetched()
        if self._keys is None:
            raise NoKeySetError
        return self._keys.candidates(key_id)

    def statistics(self) -> KeyStatistics:
        """What has been fetched so far."""
        age_s = None if self._keys is None else time.monotonic() - self._fetched_at
        return KeyStatistics(
            keys=0 if self._keys is None else len(self._keys),
            age_s=age_s,
            fetches_succeeded=self._fetches_succeeded,
            fetches_failed=self._fetches_failed,
        )

    def _fetcher(self) -> KeySetFetcher | None:
        try:
            from huleedu_service_libs.auth.key_set_fetcher import (  # noqa: PLC0415 - an extra
                KeySetFetcher,
            )
        except ModuleNotFoundError as error:
            self._cannot_fetch = (
                f"JWT_JWKS_URL needs the package {error.name}: install huleedu-service-libs[jwks]"
            )
            return None
        try:
            return KeySetFetcher(self._url, timeout_s=FETCH_TIMEOUT_S)
        except (ValueError, OSError) as error:
            self._cannot_fetch = f"JWT_JWKS_URL cannot be asked: {type(error).__name__}"
            return None

    def _may_wait_for_another(self) -> bool:
        """Whether a set is on its way, or may be asked for now, and then is."""
        if self._is_fetching or self._wanted.is_set():
            return True
        now = time.monotonic()
        if now < self._cooled_at:
            return False
        self._cooled_at = now + self._cooldown_s
        self._wanted.set()
        return True

    async def _until_fetched(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(MAX_WAIT_S):
                await self._ended.wait()

    async def _keep_fresh(self, fetcher: KeySetFetcher) -> NoReturn:
        async with fetcher:
            while True:
                self._is_fetching = True
                self._wanted.clear()
                delay_s = await self._fetch(fetcher)
                self._is_fetching = False
                # Who waits now is answered; who comes later waits for the next one.
                self._ended.set()
                self._ended = asyncio.Event()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay_s):
                        await self._wanted.wait()

    async def _fetch(self, fetcher: KeySetFetcher) -> float:
        """Seconds until the next one is due."""
        try:
            document = await fetcher.fetch()
            if document != self._document:
                self._keys = parse_key_set(document, self._algorithm)
                self._document = document
                logger.info("new key set, %s keys for %s", len(self._keys), self._algorithm)
        except UnusableKeySetError as error:
            return self._failed(str(error))
        except Exception:
            # The last boundary of this task: whatever it is, keys must not grow old unnoticed.
            logger.exception("fetching the key set went wrong")
            return self._failed("of an unexpected error")
        if self._failures_in_a_row:
            logger.info("key set fetched again, failures in between: %s", self._failures_in_a_row)
        self._failures_in_a_row = 0
        self._fetches_succeeded += 1
        self._fetched_at = time.monotonic()
        return self._cache_s * random.uniform(_EARLIEST_REFRESH, _LATEST_REFRESH)

    def _failed(self, why: str) -> float:
        if self._failures_in_a_row == 0 or why != self._why:
            consequence = (
                "no token can be verified" if self._keys is None else "older keys are used"
            )
            logger.warning("key set not fetched: %s; %s", why, consequence)
        self._why = why
        # The exponent stays small however long the server is away.
        longest_s = min(
            RETRY_MAX_DELAY_S, RETRY_FIRST_DELAY_S * 2 ** min(self._failures_in_a_row, 10)
        )
        self._failures_in_a_row += 1
        self._fetches_failed += 1
        return random.uniform(longest_s / 2, longest_s)
