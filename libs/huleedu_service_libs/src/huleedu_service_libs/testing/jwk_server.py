"""A key server on loopback that does as it is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from huleedu_service_libs.testing.signing_keys import SigningKey, key_set
from huleedu_service_libs.testing.stand_in_server import StandInServer

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

__all__ = ["JwkServer"]


class JwkServer(StandInServer):
    """Begins with the keys that it is given, and `publish` puts others in their place.

    `url` is what JWT_JWKS_URL wants.

        key = SigningKey.generate("ES256", "key-1")
        async with JwkServer(key) as server:
            settings = Settings(JWT_ALGORITHM="ES256", JWT_JWKS_URL=server.url)
            token = key.sign({"sub": "teacher-1", …})
    """

    def __init__(
        self, *keys: SigningKey | Mapping[str, Any], tls: ssl.SSLContext | None = None
    ) -> None:
        super().__init__(tls=tls)
        self.publish(*keys)

    @property
    def url(self) -> str:
        """`http://127.0.0.1:<port>/.well-known/jwks.json`, or https with `tls`."""
        return f"{self.origin}/.well-known/jwks.json"

    def publish(self, *keys: SigningKey | Mapping[str, Any]) -> None:
        """Answer with a set of these keys, or of mappings that are put in as they are."""
        self.answer(key_set(*keys))

    def stall(self, beginning: bytes = b'{"keys": [') -> None:
        """Begin an answer and never end it, until another one is set."""
        super().stall(beginning)
