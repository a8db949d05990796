"""Verification of bearer tokens with keys that the settings hold; for others see `TokenVerifier`.

What always holds, for both:

1. Whatever the token is, the outcome is `JWTClaims` or an AUTHENTICATION_ERROR. Only a service
   that lacks its key gets another error.
2. The algorithm comes from the settings. Nothing in the token is believed, and nothing but its
   header is parsed, before the signature has been verified.
3. Neither the token nor a library's message about it is in the error, its details, its stack
   trace or its exception chain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from common_core.error_enums import ErrorCode
from huleedu_service_libs.auth.compact_token import MAX_TOKEN_CHARS, parse_compact_token
from huleedu_service_libs.auth.configured_keys import (
    KeyConfigurationError,
    key_texts,
    parse_keys,
)
from huleedu_service_libs.auth.jwt_claims import JWTClaims, parse_claims
from huleedu_service_libs.auth.refusals import Refusal, RefusedTokenError
from huleedu_service_libs.error_handling import HuleEduError, raise_configuration_error
from huleedu_service_libs.error_handling.error_detail_factory import (
    create_error_detail_with_context,
)

if TYPE_CHECKING:
    from uuid import UUID

    from huleedu_service_libs.auth.jwt_settings import JWTValidationSettings

__all__ = ["MAX_TOKEN_CHARS", "JWTClaims", "decode_jwt", "raise_refusal"]


def decode_jwt(
    token: str,
    settings: JWTValidationSettings,
    *,
    service: str,
    operation: str,
    correlation_id: UUID | None = None,
) -> JWTClaims:
    """The claims of `token` (compact form, without `Bearer `), once it has proved genuine.

    `exp`, `sub`, `aud` and `iss` are required; `exp`, `nbf` and `iat` are compared with this
    host's clock, give or take JWT_LEEWAY_SECONDS. `service`, `operation` and `correlation_id` go
    into the error.

    Raises HuleEduError: AUTHENTICATION_ERROR with `details.reason` one of token_expired,
    missing_exp, missing_subject, invalid_audience, invalid_issuer, invalid_signature,
    invalid_algorithm, invalid_token; CONFIGURATION_ERROR if the settings hold no usable key, or
    have them fetched.
    """
    verdict = _verdict(token, settings)
    # Not raised where the token was found wanting: there, a parser's exception, which quotes its
    # input, could be the error's context.
    match verdict:
        case Refusal():
            raise_refusal(verdict, service, operation, correlation_id)
        case KeyConfigurationError():
            raise_configuration_error(
                service, operation, verdict.variable, str(verdict), correlation_id
            )
    return verdict


def raise_refusal(
    refusal: Refusal, service: str, operation: str, correlation_id: UUID | None
) -> NoReturn:
    """Raise AUTHENTICATION_ERROR.

    It has no stack trace: that would say the same of each bad token, and cost more than to find
    out that it is one.
    """
    raise HuleEduError(
        create_error_detail_with_context(
            ErrorCode.AUTHENTICATION_ERROR,
            refusal.message,
            service,
            operation,
            correlation_id,
            {"reason": refusal.reason},
            capture_stack=False,
        )
    )


def _verdict(
    token: object, settings: JWTValidationSettings
) -> JWTClaims | Refusal | KeyConfigurationError:
    try:
        keys = parse_keys(key_texts(settings), settings.JWT_ALGORITHM)
        parsed = parse_compact_token(token, settings.JWT_ALGORITHM)
        if not any(key.verifies(parsed.signing_input, parsed.signature) for key in keys):
            return Refusal.INVALID_SIGNATURE
        return parse_claims(parsed.payload, settings)
    except RefusedTokenError as refused:
        return refused.refusal
    except KeyConfigurationError as problem:
        return problem
