"""The service as deployments run it: a process of its own, on a free loopback port."""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import websockets
from websockets.asyncio.client import ClientConnection
from websockets.typing import Subprotocol

from huleedu_service_libs.testing.jwt_helpers import create_jwt
from tests.http_process import (
    LISTENING_PORTS,
    REPO,
    START_TIMEOUT_S,
    STOP_TIMEOUT_S,
    HttpProcess,
    free_port,
)

__all__ = [
    "CONTROL_CHANNEL",
    "HYPERCORN",
    "LISTENING_PORTS",
    "REPO",
    "SECRET",
    "SERVE",
    "START_TIMEOUT_S",
    "STOP_TIMEOUT_S",
    "ServiceProcess",
    "free_port",
    "receive_all",
    "token",
]

SECRET = "a-secret-of-the-tests-with-more-than-32-bytes"
CONTROL_CHANNEL = 1
"""Of a process's subscriptions, the one that is its own."""
HYPERCORN = (sys.executable, "-m", "hypercorn", "services.websocket_service.main:app", "--bind")
SERVE = (
    str(Path(sys.executable).with_name("websocket-service")),
    *("serve", "--host", "127.0.0.1", "--port", "{port}"),
)


def token(user: str = "teacher-1", **claims: Any) -> str:
    """A token that the service accepts, save for what `claims` replace; None leaves one out."""
    payload = {
        "sub": user,
        "aud": "huleedu-platform",
        "iss": "huleedu-identity-service",
        "exp": int(time.time()) + 3600,
        **claims,
    }
    return create_jwt(SECRET, {name: value for name, value in payload.items() if value is not None})


class ServiceProcess(HttpProcess):
    """Entered once `/readyz` answers; left with SIGTERM and the process gone.

    `command`, `settings` and `ready_status` are those of `HttpProcess`.
    """

    def __init__(
        self,
        redis_url: str,
        *,
        settings: Mapping[str, str] | None = None,
        command: Sequence[str] = HYPERCORN,
        ready_status: int | None = 200,
    ) -> None:
        super().__init__(
            command,
            settings={
                "REDIS_URL": redis_url,
                "JWT_SECRET_KEY": SECRET,
                "LOG_LEVEL": "DEBUG",
                **(settings or {}),
            },
            ready_path="/readyz",
            ready_status=ready_status,
        )
        self.redis_url = redis_url

    @property
    def url(self) -> str:
        """Of the WebSocket, without a credential."""
        return f"ws://127.0.0.1:{self.port}/ws"

    def connect(
        self,
        user: str = "teacher-1",
        *,
        subprotocols: Sequence[str] = (),
        bearer: str | None = None,
        cursor: str | None = None,
        **options: Any,
    ) -> websockets.connect:
        """A client for `async with`, credential in the header: plain unless v1 is asked for."""
        return websockets.connect(
            self.url if cursor is None else f"{self.url}?cursor={quote(cursor)}",
            additional_headers={"Authorization": f"Bearer {bearer or token(user)}"},
            subprotocols=[Subprotocol(name) for name in subprotocols] or None,
            **{"proxy": None, **options},
        )


async def receive_all(client: ClientConnection, count: int) -> list[str | bytes]:
    """The next `count` messages."""
    return [await client.recv() for _ in range(count)]
