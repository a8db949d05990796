"""Keys, each made for one algorithm and good for nothing else.

The algorithm is the configured one. A key that does not fit it is refused when it is loaded, so
that nothing in a token can bring a key and an algorithm together that were not meant for each
other.
"""

from __future__ import annotations

import functools
import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.algorithms import Algorithm, HMACAlgorithm, get_default_algorithms

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "HMAC_HASHES",
    "MAX_RSA_BITS",
    "MIN_RSA_BITS",
    "UnusableKeyError",
    "VerificationKey",
    "verification_key",
    "verification_key_from_jwk",
]

HMAC_HASHES: Final = {"HS256": "sha256", "HS384": "sha384", "HS512": "sha512"}

MIN_RSA_BITS: Final = 2048
"""RFC 7518, sections 3.3 and 3.5: MUST; also in development, or production is where it shows."""

MAX_RSA_BITS: Final = 8192
"""A check costs the square of it, and OpenSSL fails altogether above 16,384."""

_MAX_JWK_MEMBER_CHARS: Final = 2048
_JWK_MEMBERS: Final = {
    "RS256": ("RSA", None, ("n", "e")),
    "PS256": ("RSA", None, ("n", "e")),
    "ES256": ("EC", "P-256", ("x", "y")),
    "EdDSA": ("OKP", "Ed25519", ("x",)),
}


class UnusableKeyError(Exception):
    """What was given is no key for the algorithm; the text never quotes it."""


class VerificationKey(Protocol):
    """Tells whether bytes were signed by who has the other half, or the same secret."""

    def verifies(self, signing_input: bytes, signature: bytes) -> bool:
        """Whatever the bytes are, the answer is yes or no."""
        ...


@dataclass(frozen=True, slots=True)
class _SharedSecret:
    _secret: bytes = field(repr=False)
    _hash: str

    def verifies(self, signing_input: bytes, signature: bytes) -> bool:
        return hmac.compare_digest(hmac.digest(self._secret, signing_input, self._hash), signature)


@dataclass(frozen=True, slots=True)
class _PublicKey:
    _algorithm: Algorithm
    _key: RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey

    def verifies(self, signing_input: bytes, signature: bytes) -> bool:
        return self._algorithm.verify(signing_input, self._key, signature)


@functools.lru_cache(maxsize=8)
def verification_key(text: str, algorithm: str) -> VerificationKey:
    """The key in `text`: for the HS algorithms the secret itself, else a PEM public key.

    Raises UnusableKeyError.
    """
    if algorithm in HMAC_HASHES:
        return _shared_secret(text, algorithm)
    try:
        key = load_pem_public_key(text.encode())
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise UnusableKeyError(f"is not a public key for {algorithm}") from None
    return _public_key(key, algorithm)


def verification_key_from_jwk(jwk: Mapping[str, object], algorithm: str) -> VerificationKey:
    """The key of one member of a key set (RFC 7517), for an algorithm other than the HS ones.

    Raises UnusableKeyError for one that is not meant for verifying with `algorithm`.
    """
    if algorithm not in _JWK_MEMBERS:
        raise UnusableKeyError(f"cannot hold a key for {algorithm}")
    key_type, curve, names = _JWK_MEMBERS[algorithm]
    if jwk.get("kty") != key_type or jwk.get("crv") != curve:
        raise UnusableKeyError(f"is not a key for {algorithm}")
    if jwk.get("alg", algorithm) != algorithm:
        raise UnusableKeyError("is for another algorithm")
    operations = jwk.get("key_ops", ["verify"])
    if jwk.get("use", "sig") != "sig" or not (
        isinstance(operations, list) and "verify" in operations
    ):
        raise UnusableKeyError("is not for verifying signatures")
    if "d" in jwk:
        raise UnusableKeyError("has its private part beside it, so anybody can sign with it")
    public = {name: jwk.get(name) for name in names}
    if not all(
        isinstance(value, str) and len(value) <= _MAX_JWK_MEMBER_CHARS for value in public.values()
    ):
        raise UnusableKeyError("lacks its parameters")
    try:
        # Nothing but what makes the key, lest PyJWT looks at more.
        key = jwt.PyJWK({"kty": key_type, "crv": curve, **public}, algorithm).key
    except (jwt.PyJWTError, ValueError, TypeError, UnsupportedAlgorithm):
        raise UnusableKeyError(f"is not a key for {algorithm}") from None
    return _public_key(key, algorithm)


def _shared_secret(secret: str, algorithm: str) -> VerificationKey:
    try:
        # It refuses what is an asymmetric key: a public one, which everybody has, is no secret.
        # How short a secret may be is for a service to decide when it starts.
        prepared = HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(secret)
    except (jwt.PyJWTError, ValueError):
        raise UnusableKeyError(f"is not a key for {algorithm}") from None
    return _SharedSecret(prepared, HMAC_HASHES[algorithm])


def _public_key(key: Any, algorithm: str) -> VerificationKey:
    match algorithm, key:
        case "RS256" | "PS256", RSAPublicKey():
            if not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
                raise UnusableKeyError(
                    f"is an RSA key of {key.key_size} bits: it must have {MIN_RSA_BITS} to "
                    f"{MAX_RSA_BITS}"
                )
        case "ES256", EllipticCurvePublicKey(curve=SECP256R1()):
            pass
        # Ed448 goes by the same algorithm name and is left out: nobody here issues it, and with it
        # a token could be meant for either.
        case "EdDSA", Ed25519PublicKey():
            pass
        case _:
            raise UnusableKeyError(f"is not a public key for {algorithm}")
    return _PublicKey(_signature_algorithm(algorithm), key)


@functools.cache
def _signature_algorithm(algorithm: str) -> Algorithm:
    return get_default_algorithms()[algorithm]
