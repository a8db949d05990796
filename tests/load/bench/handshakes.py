"""How a client of each kind of server opens its connection."""

import json
import time
from dataclasses import dataclass
from enum import Enum
from typing import Final

import jwt

SECRET: Final = "a-secret-of-the-benchmark-with-more-than-32-bytes"
TOKEN_LIFE_S: Final = 3600


class Speech(Enum):
    """What goes over the WebSocket."""

    PLAIN = "plain"
    V1 = "v1"
    SOCKET_IO = "socket.io"


@dataclass(frozen=True, slots=True)
class Handshake:
    """One connection's."""

    path: str
    headers: tuple[tuple[str, str], ...]
    greeting: bytes | None = None
    """A text that the client sends once it is open."""
    opening_texts: int = 0
    """Texts of the server, the last of which ends the handshake; 0: the upgrade itself does."""


def token(user: str) -> str:
    """One that every server takes."""
    return jwt.encode(
        {
            "sub": user,
            "aud": "huleedu-platform",
            "iss": "huleedu-identity-service",
            "exp": int(time.time()) + TOKEN_LIFE_S,
        },
        SECRET,
        algorithm="HS256",
    )


def handshake(speech: Speech, user: str) -> Handshake:
    """With a token of this user."""
    bearer = token(user)
    if speech is Speech.SOCKET_IO:
        return Handshake(
            "/socket.io/?EIO=4&transport=websocket",
            (),
            greeting=b"40" + json.dumps({"token": bearer}).encode(),
            opening_texts=2,
        )
    headers: tuple[tuple[str, str], ...] = (("Authorization", f"Bearer {bearer}"),)
    if speech is Speech.V1:
        return Handshake(
            "/ws",
            (*headers, ("Sec-WebSocket-Protocol", "huleedu.notify.v1")),
            opening_texts=1,
        )
    return Handshake("/ws", headers)
