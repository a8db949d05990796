"""What the tests look at when the server has closed a connection."""

import contextlib
import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

MAX_REASON_BYTES = 123


@dataclass(frozen=True)
class Close:
    code: int
    reason: dict[str, Any]
    messages: list[str | bytes]
    """What came before it."""


async def closed(client: ClientConnection) -> Close:
    """Read until the server's close frame, which says why as the protocol page demands."""
    messages = []
    with contextlib.suppress(ConnectionClosed):
        while True:
            messages.append(await client.recv())
    received = client.protocol.close_rcvd
    assert received is not None, "closed without a close frame"
    return Close(received.code, parsed_reason(received.reason), messages)


def parsed_reason(text: str) -> dict[str, Any]:
    """The reason of a close frame; fails where a client could not make sense of it."""
    assert len(text.encode()) <= MAX_REASON_BYTES
    reason: dict[str, Any] = json.loads(text)
    assert reason.keys() - {"retry_after_ms"} == {"error_code", "correlation_id", "message"}
    assert reason["message"]
    UUID(reason["correlation_id"])
    return reason


def assert_public_error(error: dict[str, Any], code: str) -> None:
    """The error body of the protocol page, complete and with nothing beside it."""
    assert error.keys() == {"code", "message", "correlation_id", "service", "timestamp", "details"}
    assert error["code"] == code
    assert error["service"] == "websocket_service"
    assert error["message"]
    UUID(error["correlation_id"])
