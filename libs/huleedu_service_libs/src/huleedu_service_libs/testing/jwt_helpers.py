"""Tokens as the identity service issues them, and as it never would."""

from __future__ import annotations

import base64
import hmac
import json
import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from jwt.algorithms import get_default_algorithms

from huleedu_service_libs.auth.verification_keys import HMAC_HASHES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from uuid import UUID

    from huleedu_service_libs.auth.jwt_settings import JWTValidationSettings

__all__ = ["build_jwt_headers", "create_jwt"]


def create_jwt(
    secret: str,
    payload: Mapping[str, Any] | bytes,
    algorithm: str = "HS256",
    *,
    headers: Mapping[str, Any] | None = None,
) -> str:
    """A token with exactly these claims, wrong types included; bytes are signed as they are.

    `jwt.encode` is not used since it refuses some of what a verifier has to refuse (an `iss` that
    is no string). A `datetime` becomes seconds since the epoch. For an asymmetric algorithm
    `secret` is the PEM private key; for `none` it is ignored. `headers` are put beside `typ` and
    `alg` or in their place: another `alg` changes what the token says of itself, not how it is
    signed.

    Raises TypeError for a value that JSON can't hold, ValueError for a key that does not fit.
    """
    if not isinstance(payload, bytes):
        payload = json.dumps(payload, separators=(",", ":"), default=_json_value).encode()
    header = {"alg": algorithm, "typ": "JWT", **(headers or {})}
    header_bytes = json.dumps(header, separators=(",", ":")).encode()
    signing_input = b".".join(_base64url(part) for part in (header_bytes, payload))
    signature = _signature(signing_input, secret, algorithm)
    return b".".join((signing_input, _base64url(signature))).decode()


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


def _signature(signing_input: bytes, secret: str, algorithm: str) -> bytes:
    if algorithm == "none":
        return b""
    if algorithm in HMAC_HASHES:
        # PyJWT warns of short secrets and refuses public keys, of which tests have good use.
        return hmac.digest(secret.encode(), signing_input, HMAC_HASHES[algorithm])
    signer = get_default_algorithms()[algorithm]
    return signer.sign(signing_input, load_pem_private_key(secret.encode(), password=None))


def _base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _json_value(value: object) -> int:
    if isinstance(value, datetime):
        return int(value.timestamp())
    raise TypeError(f"{type(value).__name__} is no JSON value")
