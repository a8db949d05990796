"""PyJWT's signature layer, narrowed to one algorithm.

Only the signature layer is used: what PyJWT's claim checks accept, raise and let through has
changed between its releases, so `jwt_validation` checks claims itself.
"""

from __future__ import annotations

import functools

import jwt
from jwt.algorithms import HMACAlgorithm

__all__ = ["HMAC_HASHES", "signature_layer"]

HMAC_HASHES = {
    "HS256": HMACAlgorithm.SHA256,
    "HS384": HMACAlgorithm.SHA384,
    "HS512": HMACAlgorithm.SHA512,
}


class _AnyLengthHMAC(HMACAlgorithm):
    """HMAC without PyJWT's warning on short secrets.

    The warning comes with each token: with development's short secret it would fill the log, and
    where warnings are errors it would turn a good token into a failure. A service refuses a weak
    secret once, when it starts.
    """

    def check_key_length(self, key: bytes) -> str | None:  # noqa: ARG002 - PyJWT's signature
        return None

    def prepare_key(self, key: str | bytes) -> bytes:
        # It looks for a PEM or SSH key in the secret, a third of the time that a token takes.
        return _prepared(key)


@functools.lru_cache(maxsize=8)
def _prepared(key: str | bytes) -> bytes:
    return HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(key)


@functools.cache
def signature_layer(algorithm: str) -> jwt.PyJWS:
    """Signs and verifies with `algorithm` and nothing else, whatever a token's header says.

    An algorithm that PyJWT lacks (the asymmetric ones need the `cryptography` package) gives a
    layer that raises `NotImplementedError` when it is used.
    """
    if algorithm not in HMAC_HASHES:
        return jwt.PyJWS(algorithms=[algorithm])
    layer = jwt.PyJWS(algorithms=[])
    layer.register_algorithm(algorithm, _AnyLengthHMAC(HMAC_HASHES[algorithm]))
    return layer
