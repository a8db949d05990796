"""The identity service's side of asymmetric tokens: keys to sign with, and what is published."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from jwt.algorithms import get_default_algorithms

from huleedu_service_libs.testing.jwt_helpers import create_jwt

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["SigningKey", "key_set"]

_RSA_BITS = 2048
_PUBLIC_EXPONENT = 65_537


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key, fresh from `generate()`, and what belongs to it, as PEM and as JWK."""

    algorithm: str
    key_id: str | None
    private_pem: str = field(repr=False)
    public_pem: str
    public_jwk: Mapping[str, Any]

    @classmethod
    def generate(
        cls, algorithm: str = "ES256", key_id: str | None = None, *, rsa_bits: int = _RSA_BITS
    ) -> Self:
        """A new key for RS*, PS*, ES256, ES384 or EdDSA; `rsa_bits` may be too few."""
        key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
        match algorithm:
            case "ES256":
                key = ec.generate_private_key(ec.SECP256R1())
            case "ES384":
                key = ec.generate_private_key(ec.SECP384R1())
            case "EdDSA":
                key = ed25519.Ed25519PrivateKey.generate()
            case _:
                key = rsa.generate_private_key(_PUBLIC_EXPONENT, rsa_bits)
        public = key.public_key()
        jwk = json.loads(get_default_algorithms()[algorithm].to_jwk(public))
        # Only some kinds have it; `use` says as much.
        jwk.pop("key_ops", None)
        jwk |= {"use": "sig", "alg": algorithm}
        if key_id is not None:
            jwk["kid"] = key_id
        return cls(
            algorithm,
            key_id,
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
            public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(),
            jwk,
        )

    def sign(
        self, claims: Mapping[str, Any] | bytes, *, headers: Mapping[str, Any] | None = None
    ) -> str:
        """A token with this key's id, if it has one, and `headers`; see `create_jwt`."""
        key_id = {} if self.key_id is None else {"kid": self.key_id}
        return create_jwt(
            self.private_pem, claims, self.algorithm, headers={**key_id, **(headers or {})}
        )


def key_set(*keys: SigningKey | Mapping[str, Any]) -> bytes:
    """A JWKS document with these keys; a mapping is put in as it is."""
    members = [dict(key.public_jwk if isinstance(key, SigningKey) else key) for key in keys]
    return json.dumps({"keys": members}).encode()
