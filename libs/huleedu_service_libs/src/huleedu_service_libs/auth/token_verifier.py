"""Verification of bearer tokens for a service that runs: with keys that rotate and are fetched.

What always holds is said in `jwt_validation`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from huleedu_service_libs.auth.compact_token import CompactToken, parse_compact_token
from huleedu_service_libs.auth.configured_keys import (
    ConfiguredKeys,
    KeyConfigurationError,
    check_key_source,
)
from huleedu_service_libs.auth.jwks import NoKeySetError, PublishedKeys
from huleedu_service_libs.auth.jwt_claims import JWTClaims, parse_claims
from huleedu_service_libs.auth.jwt_validation import raise_refusal
from huleedu_service_libs.auth.refusals import Refusal, RefusedTokenError
from huleedu_service_libs.auth.refused_signatures import RefusedSignatures
from huleedu_service_libs.auth.verification_keys import HMAC_HASHES, VerificationKey
from huleedu_service_libs.error_handling import raise_configuration_error, raise_connection_error

if TYPE_CHECKING:
    from types import TracebackType
    from uuid import UUID

    from huleedu_service_libs.auth.jwt_settings import JWTValidationSettings
    from huleedu_service_libs.auth.key_statistics import KeyStatistics

__all__ = ["TokenVerifier"]


class TokenVerifier:
    """Verifies tokens as `settings` say; an async context manager.

    While it is entered it keeps the keys of JWT_JWKS_URL fresh; to enter neither waits for the key
    server nor fails for want of it. With other keys entering does nothing.
    """

    def __init__(self, settings: JWTValidationSettings, *, service: str) -> None:
        self._settings = settings
        self._service = service
        self._keys = _key_source(settings)
        # A hash of the token costs as much as the HMAC that it would save.
        self._refused = None if settings.JWT_ALGORITHM in HMAC_HASHES else RefusedSignatures()

    async def __aenter__(self) -> Self:
        await self._keys.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._keys.__aexit__(exc_type, exc, traceback)

    @property
    def problem(self) -> str | None:
        """Why no token can be verified now, in a sentence without keys and addresses; else None."""
        return self._keys.problem

    def statistics(self) -> KeyStatistics:
        """What is known of the keys now."""
        return self._keys.statistics()

    async def verify(
        self,
        token: str,
        *,
        operation: str = "verify_token",
        correlation_id: UUID | None = None,
    ) -> JWTClaims:
        """The claims of `token` (compact form, without `Bearer `), once it has proved genuine.

        Waits only for keys that have to be fetched, for 2 s at most. `exp`, `sub`, `aud` and `iss`
        are required; `exp`, `nbf` and `iat` are compared with this host's clock, give or take
        JWT_LEEWAY_SECONDS.

        Raises HuleEduError: AUTHENTICATION_ERROR with the same reasons as `decode_jwt` if the token
        is bad; CONFIGURATION_ERROR if there is no usable key, and CONNECTION_ERROR with the target
        `jwks` while no key set has come from the key server. RuntimeError if keys are to be fetched
        and this has not been entered.
        """
        verdict = await self._verdict(token)
        # Not raised where the token was found wanting: see `decode_jwt`.
        match verdict:
            case Refusal():
                raise_refusal(verdict, self._service, operation, correlation_id)
            case KeyConfigurationError():
                raise_configuration_error(
                    self._service, operation, verdict.variable, str(verdict), correlation_id
                )
            case NoKeySetError():
                raise_connection_error(
                    self._service, operation, "jwks", str(verdict), correlation_id
                )
        return verdict

    async def _verdict(
        self, token: object
    ) -> JWTClaims | Refusal | KeyConfigurationError | NoKeySetError:
        try:
            self._keys.check()
            parsed = parse_compact_token(token, self._settings.JWT_ALGORITHM)
            keys = await self._keys.candidates(parsed.key_id)
            if not self._is_signed(parsed, keys):
                return Refusal.INVALID_SIGNATURE
            return parse_claims(parsed.payload, self._settings)
        except RefusedTokenError as refused:
            return refused.refusal
        except (KeyConfigurationError, NoKeySetError) as error:
            return error

    def _is_signed(self, token: CompactToken, keys: tuple[VerificationKey, ...]) -> bool:
        if self._refused is None:
            return any(key.verifies(token.signing_input, token.signature) for key in keys)
        digest = self._refused.digest(token.signing_input, token.signature)
        if self._refused.has(digest, keys):
            return False
        if any(key.verifies(token.signing_input, token.signature) for key in keys):
            return True
        self._refused.add(digest, keys)
        return False


def _key_source(settings: JWTValidationSettings) -> ConfiguredKeys | PublishedKeys:
    try:
        check_key_source(settings)
    except KeyConfigurationError:
        # It says what is wrong to whoever asks.
        return ConfiguredKeys(settings)
    if settings.JWT_JWKS_URL:
        return PublishedKeys(settings.JWT_JWKS_URL, settings)
    return ConfiguredKeys(settings)
