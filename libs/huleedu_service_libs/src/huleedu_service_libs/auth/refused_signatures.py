"""Tokens that have been refused before."""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from huleedu_service_libs.auth.verification_keys import VerificationKey

__all__ = ["RefusedSignatures"]

_MAX_TOKENS: Final = 4096


class RefusedSignatures:
    """The latest tokens whose signature was wrong, up to `_MAX_TOKENS`, some 200 bytes each.

    An entry counts for the keys that refused the token and for no others: a key that comes later
    may well be the one that it was signed with. Nothing else is remembered, since all else that is
    wrong with a token is found at less cost, or needs a genuine signature.
    """

    def __init__(self) -> None:
        # Keyed, so that nobody can prepare a token that is taken for another one.
        self._key = secrets.token_bytes(16)
        self._refused_by: OrderedDict[bytes, tuple[VerificationKey, ...]] = OrderedDict()

    def digest(self, signing_input: bytes, signature: bytes) -> bytes:
        """What stands for the token."""
        digest = hashlib.blake2b(signing_input, digest_size=16, key=self._key)
        digest.update(signature)
        return digest.digest()

    def has(self, digest: bytes, keys: tuple[VerificationKey, ...]) -> bool:
        """Whether these keys have refused it."""
        if self._refused_by.get(digest) is not keys:
            return False
        self._refused_by.move_to_end(digest)
        return True

    def add(self, digest: bytes, keys: tuple[VerificationKey, ...]) -> None:
        """Remember it, and forget the one that was longest not seen if there are too many."""
        self._refused_by[digest] = keys
        self._refused_by.move_to_end(digest)
        if len(self._refused_by) > _MAX_TOKENS:
            self._refused_by.popitem(last=False)
