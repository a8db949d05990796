"""A JSON Web Key Set (RFC 7517), as far as it is good for one algorithm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from huleedu_service_libs import strict_json
from huleedu_service_libs.auth.compact_token import MAX_KEY_ID_CHARS
from huleedu_service_libs.auth.verification_keys import (
    UnusableKeyError,
    VerificationKey,
    verification_key_from_jwk,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MAX_KEYS", "KeySet", "UnusableKeySetError", "parse_key_set"]

MAX_KEYS: Final = 64
"""Issuers publish a handful; each of an id that several keys share costs a signature check."""


class UnusableKeySetError(Exception):
    """No key can be had from it; the text says why, as "it …"."""


class KeySet:
    """Verification keys by the ids under which they were published."""

    def __init__(self, keys: Sequence[tuple[str | None, VerificationKey]]) -> None:
        by_id: dict[str | None, tuple[VerificationKey, ...]] = {}
        distinct: list[VerificationKey] = []
        for key_id, key in keys:
            if key not in distinct:
                distinct.append(key)
            known = by_id.get(key_id, ())
            if key not in known:
                by_id[key_id] = (*known, key)
        self._by_id = by_id
        self._only = tuple(distinct) if len(distinct) == 1 else ()
        self._size = len(distinct)

    def __len__(self) -> int:
        """How many different keys."""
        return self._size

    def candidates(self, key_id: str | None) -> tuple[VerificationKey, ...]:
        """The keys with this id: all of them, where an issuer has given one id to several.

        A token that names none can only mean the only key there is.
        """
        if key_id is None:
            return self._only
        return self._by_id.get(key_id, ())


def parse_key_set(document: bytes, algorithm: str) -> KeySet:
    """The keys that are for verifying with `algorithm`; other members do no harm.

    Raises UnusableKeySetError, also where not one key is left.
    """
    try:
        parsed = strict_json.loads(document.decode())
    except ValueError:
        raise UnusableKeySetError("it is not JSON") from None
    members = parsed.get("keys") if isinstance(parsed, dict) else None
    if not isinstance(members, list):
        raise UnusableKeySetError("it is not a key set")
    if len(members) > MAX_KEYS:
        raise UnusableKeySetError(f"it has more than {MAX_KEYS} keys")
    keys: list[tuple[str | None, VerificationKey]] = []
    why = "it is empty"
    for member in members:
        try:
            keys.append(_key(member, algorithm))
        except UnusableKeyError as error:
            why = f"it has no key that can be used: the last one {error}"
    if not keys:
        raise UnusableKeySetError(why)
    return KeySet(keys)


def _key(member: object, algorithm: str) -> tuple[str | None, VerificationKey]:
    if not isinstance(member, dict):
        raise UnusableKeyError("is not an object")
    key_id = member.get("kid")
    if not isinstance(key_id, str | None) or len(key_id or "") > MAX_KEY_ID_CHARS:
        raise UnusableKeyError("has an id that no token can name")
    return key_id, verification_key_from_jwk(member, algorithm)
