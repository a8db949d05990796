"""What a token says, once its signature has been verified."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from huleedu_service_libs import strict_json
from huleedu_service_libs.auth.refusals import Refusal, RefusedTokenError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from huleedu_service_libs.auth.jwt_settings import JWTValidationSettings

__all__ = ["JWTClaims", "parse_claims"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JWTClaims:
    """What a verified token says. `raw` has all claims as they came, read-only.

    `expires_at` is the token's own: with a leeway it may have passed already.
    """

    subject: str
    expires_at: datetime
    issued_at: datetime | None = None
    token_id: str | None = None
    raw: Mapping[str, Any] = field(repr=False, hash=False)


def parse_claims(payload: bytes, settings: JWTValidationSettings) -> JWTClaims:
    """The claims in `payload`, if they are good now.

    Raises RefusedTokenError.
    """
    return _checked(_parsed(payload), settings)


def _parsed(payload: bytes) -> dict[str, Any]:
    try:
        claims = strict_json.loads(payload.decode("utf-8"))
        if b"\\u" in payload:
            # JSON can escape half a surrogate pair. Such a string breaks whoever encodes it later:
            # the log, a channel name, an error body.
            json.dumps(claims, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError):
        raise RefusedTokenError(Refusal.INVALID_TOKEN) from None
    if not isinstance(claims, dict):
        raise RefusedTokenError(Refusal.INVALID_TOKEN)
    return claims


def _checked(claims: dict[str, Any], settings: JWTValidationSettings) -> JWTClaims:
    now = time.time()
    leeway_s = settings.JWT_LEEWAY_SECONDS
    if claims.get("exp") is None:
        raise RefusedTokenError(Refusal.MISSING_EXP)
    if _numeric_date(claims["exp"]) <= now - leeway_s:
        raise RefusedTokenError(Refusal.TOKEN_EXPIRED)
    for name in ("nbf", "iat"):
        if name in claims and _numeric_date(claims[name]) > now + leeway_s:
            raise RefusedTokenError(Refusal.INVALID_TOKEN)

    subject = claims.get("sub")
    if not isinstance(subject, str) or not subject.strip():
        raise RefusedTokenError(Refusal.MISSING_SUBJECT)
    if not _names_audience(claims.get("aud"), settings.JWT_AUDIENCE):
        raise RefusedTokenError(Refusal.INVALID_AUDIENCE)
    if claims.get("iss") != settings.JWT_ISSUER:
        raise RefusedTokenError(Refusal.INVALID_ISSUER)
    token_id = claims.get("jti")
    if not isinstance(token_id, str | None):
        raise RefusedTokenError(Refusal.INVALID_TOKEN)

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
        raise RefusedTokenError(Refusal.INVALID_TOKEN)
    return value


def _utc(seconds: float) -> datetime:
    """Refuses what a datetime can't hold: years outside 1 to 9999, and 1e400, which is infinity."""
    try:
        return datetime.fromtimestamp(seconds, tz=UTC)
    except (OverflowError, ValueError, OSError):
        raise RefusedTokenError(Refusal.INVALID_TOKEN) from None


def _names_audience(claim: object, audience: str) -> bool:
    named = [claim] if isinstance(claim, str) else claim
    return (
        isinstance(named, list)
        and all(isinstance(name, str) for name in named)
        and audience in named
    )
