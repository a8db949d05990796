"""Verification of bearer tokens.

What always holds:

1. Whatever the token is, the outcome is `JWTClaims` or an AUTHENTICATION_ERROR. Only a service
   that lacks its key gets a CONFIGURATION_ERROR.
2. The algorithm comes from the settings. Nothing in the token is believed, and nothing but its
   header is parsed, before the signature has been verified.
3. Neither the token nor a library's message about it is in the error, its details, its stack
   trace or its exception chain.
"""

from __future__ import annotations

import enum
import json
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn

import jwt

from huleedu_service_libs import strict_json
from huleedu_service_libs.auth.signatures import signature_layer
from huleedu_service_libs.error_handling import raise_authentication_error

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from huleedu_service_libs.auth.jwt_settings import JWTValidationSettings

__all__ = ["MAX_TOKEN_CHARS", "JWTClaims", "decode_jwt"]

MAX_TOKEN_CHARS = 16_384
"""Bounds the work an unauthenticated peer can cause. Our tokens have less than 1,000 characters,
and HTTP servers refuse header fields of this size anyway."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JWTClaims:
    """What a verified token says. `raw` has all claims as they came, read-only."""

    subject: str
    expires_at: datetime
    issued_at: datetime | None = None
    token_id: str | None = None
    raw: Mapping[str, Any] = field(repr=False, hash=False)


class _Refusal(enum.Enum):
    """Why a token is refused: `details.reason` and the message."""

    TOKEN_EXPIRED = ("token_expired", "Token has expired")
    MISSING_EXP = ("missing_exp", "Token missing expiration claim")
    MISSING_SUBJECT = ("missing_subject", "Token missing subject")
    INVALID_AUDIENCE = ("invalid_audience", "Invalid token audience")
    INVALID_ISSUER = ("invalid_issuer", "Invalid token issuer")
    INVALID_SIGNATURE = ("invalid_signature", "Token signature verification failed")
    INVALID_ALGORITHM = ("invalid_algorithm", "Algorithm not allowed")
    INVALID_TOKEN = ("invalid_token", "Invalid token")

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        self.message = message


class _RefusedError(Exception):
    def __init__(self, refusal: _Refusal) -> None:
        super().__init__(refusal.reason)
        self.refusal = refusal


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
    host's clock without leeway. `service`, `operation` and `correlation_id` go into the error.

    Raises HuleEduError: AUTHENTICATION_ERROR with `details.reason` one of token_expired,
    missing_exp, missing_subject, invalid_audience, invalid_issuer, invalid_signature,
    invalid_algorithm, invalid_token; CONFIGURATION_ERROR if the settings have no usable key.
    """
    key = settings.get_jwt_verification_key(
        service=service, operation=operation, correlation_id=correlation_id
    )
    verdict = _verdict(token, key, settings)
    if isinstance(verdict, _Refusal):
        # Not raised where the token was found wanting: there, the parser's exception, which
        # quotes its input, would be the error's context and its stack trace.
        raise_authentication_error(
            service, operation, verdict.message, correlation_id, reason=verdict.reason
        )
    return verdict


def _verdict(token: object, key: str, settings: JWTValidationSettings) -> JWTClaims | _Refusal:
    try:
        payload = _verified_payload(token, key, settings.JWT_ALGORITHM)
        return _checked_claims(_parsed(payload), settings)
    except _RefusedError as refused:
        return refused.refusal


def _refuse(refusal: _Refusal) -> NoReturn:
    raise _RefusedError(refusal)


def _verified_payload(token: object, key: str, algorithm: str) -> bytes:
    if not isinstance(token, str) or len(token) > MAX_TOKEN_CHARS:
        _refuse(_Refusal.INVALID_TOKEN)
    try:
        decoded = signature_layer(algorithm).decode_complete(token, key, algorithms=[algorithm])
    except jwt.InvalidAlgorithmError:
        _refuse(_Refusal.INVALID_ALGORITHM)
    except jwt.InvalidSignatureError:
        _refuse(_Refusal.INVALID_SIGNATURE)
    except (jwt.InvalidTokenError, ValueError, TypeError, RecursionError):
        # The last three: encoding a lone surrogate, a header of ten thousand brackets, and
        # whatever else releases of PyJWT before 2.12 let through.
        _refuse(_why_undecodable(token, algorithm))
    # An extension that must be understood, and we understand none (RFC 7515, section 4.1.11).
    if "crit" in decoded["header"]:
        _refuse(_Refusal.INVALID_TOKEN)
    payload: bytes = decoded["payload"]
    return payload


def _why_undecodable(token: str, algorithm: str) -> _Refusal:
    """A token whose signature alone is garbled has a bad signature, not a bad form."""
    try:
        header = jwt.get_unverified_header(token.rpartition(".")[0] + ".")
    except (jwt.InvalidTokenError, ValueError, TypeError, RecursionError):
        return _Refusal.INVALID_TOKEN
    if header.get("b64", True) is not True:
        return _Refusal.INVALID_TOKEN
    if header.get("alg") != algorithm:
        return _Refusal.INVALID_ALGORITHM
    return _Refusal.INVALID_SIGNATURE


def _parsed(payload: bytes) -> dict[str, Any]:
    try:
        claims = strict_json.loads(payload.decode("utf-8"))
        if b"\\u" in payload:
            # JSON can escape half a surrogate pair. Such a string breaks whoever encodes it later:
            # the log, a channel name, an error body.
            json.dumps(claims, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError):
        _refuse(_Refusal.INVALID_TOKEN)
    if not isinstance(claims, dict):
        _refuse(_Refusal.INVALID_TOKEN)
    return claims


def _checked_claims(claims: dict[str, Any], settings: JWTValidationSettings) -> JWTClaims:
    now = time.time()
    if claims.get("exp") is None:
        _refuse(_Refusal.MISSING_EXP)
    if _numeric_date(claims["exp"]) <= now:
        _refuse(_Refusal.TOKEN_EXPIRED)
    if any(_numeric_date(claims[name]) > now for name in ("nbf", "iat") if name in claims):
        _refuse(_Refusal.INVALID_TOKEN)

    subject = claims.get("sub")
    if not isinstance(subject, str) or not subject.strip():
        _refuse(_Refusal.MISSING_SUBJECT)
    if not _names_audience(claims.get("aud"), settings.JWT_AUDIENCE):
        _refuse(_Refusal.INVALID_AUDIENCE)
    if claims.get("iss") != settings.JWT_ISSUER:
        _refuse(_Refusal.INVALID_ISSUER)
    token_id = claims.get("jti")
    if not isinstance(token_id, str | None):
        _refuse(_Refusal.INVALID_TOKEN)

    return JWTClaims(
        subject=subject,
        expires_at=_utc(claims["exp"]),
        issued_at=_utc(claims["iat"]) if "iat" in claims else None,
        token_id=token_id,
        raw=MappingProxyType(claims),
    )


def _numeric_date(value: object) -> float:
    """Seconds since the epoch (RFC 7519, section 2); to Python a boolean is an int too."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        _refuse(_Refusal.INVALID_TOKEN)
    return value


def _utc(seconds: float) -> datetime:
    """Refuses what a datetime can't hold: years outside 1 to 9999, and 1e400, which is infinity."""
    try:
        return datetime.fromtimestamp(seconds, tz=UTC)
    except (OverflowError, ValueError, OSError):
        _refuse(_Refusal.INVALID_TOKEN)


def _names_audience(claim: object, audience: str) -> bool:
    named = [claim] if isinstance(claim, str) else claim
    return (
        isinstance(named, list)
        and all(isinstance(name, str) for name in named)
        and audience in named
    )
