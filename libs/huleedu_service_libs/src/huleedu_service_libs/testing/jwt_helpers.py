"""Tokens as the identity service issues them, and as it never would."""

from __future__ import annotations

import json
import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from huleedu_service_libs.auth.signatures import HMAC_HASHES, signature_layer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from uuid import UUID

    from huleedu_service_libs.auth.jwt_settings import JWTValidationSettings

__all__ = ["build_jwt_headers", "create_jwt"]


def create_jwt(secret: str, payload: Mapping[str, Any], algorithm: str = "HS256") -> str:
    """A signed token with exactly these claims, wrong types included.

    `jwt.encode` is not used since it refuses some of what a verifier has to refuse (an `iss` that
    is no string). A `datetime` becomes seconds since the epoch. For an asymmetric algorithm
    `secret` is the PEM private key; for `none` it is ignored.

    Raises TypeError for a value that JSON can't hold.
    """
    claims = json.dumps(payload, separators=(",", ":"), default=_json_value)
    key = "" if algorithm == "none" else secret
    return signature_layer(algorithm).encode(claims.encode(), key, algorithm)


def build_jwt_headers(
    settings: JWTValidationSettings,
    *,
    subject: str = "test-user",
    roles: Sequence[str] | None = None,
    org_id: str | None = None,
    correlation_id: UUID | str | None = None,
    expires_in: timedelta = timedelta(hours=1),
    omit_claims: Iterable[str] | None = None,
    extra_claims: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Request headers that `settings` accept: `Authorization`, and `X-Correlation-ID` if given.

    `extra_claims` replace claims of the same name, then `omit_claims` are left out; a negative
    `expires_in` makes an expired token.

    Raises ValueError unless the settings use an HS algorithm (with the others, the verifier has no
    key to sign with) and HuleEduError CONFIGURATION_ERROR if they have no secret.
    """
    if settings.JWT_ALGORITHM not in HMAC_HASHES:
        raise ValueError(f"cannot sign with the verification key of {settings.JWT_ALGORITHM}")
    issued_at = int(time.time())
    claims: dict[str, Any] = {
        "sub": subject,
        "aud": settings.JWT_AUDIENCE,
        "iss": settings.JWT_ISSUER,
        "iat": issued_at,
        "exp": issued_at + int(expires_in.total_seconds()),
    }
    if roles is not None:
        claims["roles"] = list(roles)
    if org_id is not None:
        claims["org_id"] = org_id
    claims.update(extra_claims or {})
    for name in omit_claims or ():
        claims.pop(name, None)

    token = create_jwt(settings.get_jwt_verification_key(), claims, settings.JWT_ALGORITHM)
    headers = {"Authorization": f"Bearer {token}"}
    if correlation_id is not None:
        headers["X-Correlation-ID"] = str(correlation_id)
    return headers


def _json_value(value: object) -> int:
    if isinstance(value, datetime):
        return int(value.timestamp())
    raise TypeError(f"{type(value).__name__} is no JSON value")
