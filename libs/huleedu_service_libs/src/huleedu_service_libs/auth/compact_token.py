"""The compact form of a signed token (RFC 7515, section 7.1), read but not believed.

All of this is cheaper than a signature check, and most of what is no token of ours ends here.
"""

from __future__ import annotations

import base64
from typing import Any, Final, NamedTuple

from huleedu_service_libs import strict_json
from huleedu_service_libs.auth.refusals import Refusal, RefusedTokenError

__all__ = ["MAX_KEY_ID_CHARS", "MAX_TOKEN_CHARS", "CompactToken", "parse_compact_token"]

MAX_TOKEN_CHARS: Final = 16_384
"""Bounds the work an unauthenticated peer can cause. Our tokens have less than 1,000 characters,
and HTTP servers refuse header fields of this size anyway."""

MAX_KEY_ID_CHARS: Final = 256

_SEGMENTS: Final = 3


class CompactToken(NamedTuple):
    """The parts of a token that says it was signed with the algorithm that is accepted."""

    signing_input: bytes
    payload: bytes
    signature: bytes
    key_id: str | None


def parse_compact_token(token: object, algorithm: str) -> CompactToken:
    """Take the token apart; of its header only `alg`, `kid`, `b64` and `crit` are looked at.

    A key that comes with the token, or where to get one (`jwk`, `jku`, `x5c`, `x5u`), is whatever
    its author likes, so those are ignored.

    Raises RefusedTokenError.
    """
    if not isinstance(token, str) or len(token) > MAX_TOKEN_CHARS:
        raise RefusedTokenError(Refusal.INVALID_TOKEN)
    segments = token.split(".", _SEGMENTS)
    if len(segments) != _SEGMENTS:
        raise RefusedTokenError(Refusal.INVALID_TOKEN)
    try:
        header = strict_json.loads(_decoded(segments[0]).decode())
        payload = _decoded(segments[1])
    except ValueError:
        raise RefusedTokenError(Refusal.INVALID_TOKEN) from None
    if not isinstance(header, dict):
        raise RefusedTokenError(Refusal.INVALID_TOKEN)
    key_id = _key_id(header, algorithm)
    try:
        signature = _decoded(segments[2])
    except ValueError:
        raise RefusedTokenError(Refusal.INVALID_SIGNATURE) from None
    return CompactToken(f"{segments[0]}.{segments[1]}".encode(), payload, signature, key_id)


def _key_id(header: dict[str, Any], algorithm: str) -> str | None:
    if header.get("alg") != algorithm:
        raise RefusedTokenError(Refusal.INVALID_ALGORITHM)
    # Extensions that must be understood, and we understand none (RFC 7515, section 4.1.11;
    # RFC 7797, section 6).
    if "crit" in header or header.get("b64", True) is not True:
        raise RefusedTokenError(Refusal.INVALID_TOKEN)
    if "kid" not in header:
        return None
    key_id = header["kid"]
    if not isinstance(key_id, str) or len(key_id) > MAX_KEY_ID_CHARS:
        raise RefusedTokenError(Refusal.INVALID_TOKEN)
    return key_id


def _decoded(segment: str) -> bytes:
    encoded = segment.encode("ascii")
    decoded = base64.urlsafe_b64decode(encoded + b"==")
    # The decoder skips what is no base64 and does not look at the last character's spare bits:
    # there would be several texts of one token.
    if base64.urlsafe_b64encode(decoded).rstrip(b"=") != encoded:
        raise ValueError("not base64url")
    return decoded
