"""WebSocket clients that misbehave, how the well-behaved ones end, and what a log must not say."""

import asyncio
import contextlib
import json
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.client import ClientProtocol
from websockets.exceptions import ConnectionClosed
from websockets.frames import Close, Frame, Opcode
from websockets.http11 import Response
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from tests.service_process import ServiceProcess, token

V1 = Subprotocol("huleedu.notify.v1")
GIVE_UP_AFTER_S = 30
_READ_BYTES = 65_536
_SIGNS_OF_TROUBLE = (
    "Traceback",
    "Exception ignored",
    "Task was destroyed",
    "never awaited",
    "never retrieved",
)


@dataclass(frozen=True)
class Ending:
    """How a connection ended for the client; code 1006 is an end without a close frame."""

    code: int
    reason: dict[str, Any]
    messages: list[str]


class RawPeer:
    """A client's end of a TCP connection: it reads, writes and answers only when told to."""

    def __init__(self, connection: socket.socket, url: str) -> None:
        self._socket = connection
        self._protocol = ClientProtocol(parse_uri(url))
        self._events: deque[Any] = deque()

    async def send(self, data: bytes) -> None:
        """Write bytes as they are."""
        await asyncio.get_running_loop().sock_sendall(self._socket, data)

    def request(self, user: str = "teacher-1", subprotocols: Sequence[Subprotocol] = ()) -> bytes:
        """The bytes of an upgrade that the service accepts."""
        self._protocol.available_subprotocols = subprotocols or None
        request = self._protocol.connect()
        request.headers["Authorization"] = f"Bearer {token(user)}"
        self._protocol.send_request(request)
        return b"".join(self._protocol.data_to_send())

    async def open(self, user: str = "teacher-1", subprotocols: Sequence[Subprotocol] = ()) -> None:
        """Upgrade, and return once the service has accepted."""
        await self.send(self.request(user, subprotocols))
        await self.accepted()

    async def accepted(self) -> None:
        """Return once the upgrade is answered with 101; raises ConnectionError without answer."""
        response = await self._next_event()
        assert isinstance(response, Response)
        assert response.status_code == 101

    async def ending(self) -> Ending:
        """Read up to the service's close frame, without an answer to it."""
        messages: list[str] = []
        try:
            while True:
                frame = await self._next_event()
                assert isinstance(frame, Frame)
                if frame.opcode is Opcode.CLOSE:
                    close = Close.parse(bytes(frame.data))
                    return Ending(close.code, json.loads(close.reason or "{}"), messages)
                if frame.opcode is Opcode.TEXT:
                    messages.append(bytes(frame.data).decode())
        except ConnectionError:
            return Ending(1006, {}, messages)

    async def answer(self) -> None:
        """Write what a client in good order would have written to what was read so far."""
        await self.send(b"".join(self._protocol.data_to_send()))

    async def receive(self) -> bytes:
        """What has come; empty at the end."""
        return await asyncio.get_running_loop().sock_recv(self._socket, _READ_BYTES)

    async def ended(self) -> None:
        """Return once the service has closed the TCP connection, whichever way."""
        with contextlib.suppress(ConnectionError):
            while await self.receive():
                pass

    def reset(self) -> None:
        """Vanish: the service gets an RST instead of an end of file."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    async def _next_event(self) -> object:
        while not self._events:
            data = await self.receive()
            if not data:
                raise ConnectionError("ended without a close frame")
            self._protocol.receive_data(data)
            self._events.extend(self._protocol.events_received())
        return self._events.popleft()


@contextlib.asynccontextmanager
async def raw_peer(
    service: ServiceProcess, *, receive_buffer_bytes: int | None = None
) -> AsyncIterator[RawPeer]:
    """A TCP connection to the service on which nothing has been said yet."""
    with socket.socket() as connection:
        connection.setblocking(False)
        if receive_buffer_bytes is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        address = ("127.0.0.1", service.port)
        await asyncio.get_running_loop().sock_connect(connection, address)
        yield RawPeer(connection, service.url)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Return once `condition` holds; raises TimeoutError where it never does."""
    async with asyncio.timeout(GIVE_UP_AFTER_S):
        while not await condition():  # noqa: ASYNC110 - it holds in another process
            await asyncio.sleep(0.02)


async def ending(client: ClientConnection) -> Ending:
    """Read up to the end."""
    messages: list[str] = []
    try:
        while True:
            messages.append(await client.recv(decode=True))
    except ConnectionClosed as closed:
        if closed.rcvd is None:
            return Ending(1006, {}, messages)
        return Ending(closed.rcvd.code, json.loads(closed.rcvd.reason or "{}"), messages)


def assert_come_back_later(end: Ending, code: int) -> None:
    """A client that was closed with `code` knows why, and when to come back."""
    assert end.code == code
    assert end.reason.keys() == {"error_code", "correlation_id", "retry_after_ms", "message"}
    assert end.reason["retry_after_ms"] > 0


def assert_nothing_went_wrong(output: str) -> None:
    """No line of a log that sends an operator looking for a defect."""
    assert [line for line in output.splitlines() if any(s in line for s in _SIGNS_OF_TROUBLE)] == []
