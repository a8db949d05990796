"""A WebSocket client by hand: it hides nothing, corrects nothing, and reads only when told to."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from enum import IntEnum

MASK = b"\x5a\xa5\x0f\xf0"
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
"""The example of RFC 6455."""
UPGRADE = (
    ("Upgrade", "websocket"),
    ("Connection", "Upgrade"),
    ("Sec-WebSocket-Key", KEY),
    ("Sec-WebSocket-Version", "13"),
)


class Opcode(IntEnum):
    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


@dataclass(frozen=True)
class Frame:
    opcode: int
    payload: bytes


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    reserved: int = 0,
    masked: bool = True,
    announced: int | None = None,
) -> bytes:
    """A client's frame; `announced` is the length in its header where that is not the payload's."""
    length = len(payload) if announced is None else announced
    mask_bit = 0x80 if masked else 0
    head = bytes([0x80 * fin | reserved << 4 | opcode])
    if length < 126:
        head += bytes([mask_bit | length])
    elif length < 65536:
        head += bytes([mask_bit | 126]) + struct.pack("!H", length)
    else:
        head += bytes([mask_bit | 127]) + struct.pack("!Q", length)
    return head + (MASK + mask(payload) if masked else payload)


def mask(payload: bytes) -> bytes:
    """Masking is its own inverse."""
    repeated = (MASK * (len(payload) // len(MASK) + 1))[: len(payload)]
    return (int.from_bytes(payload) ^ int.from_bytes(repeated)).to_bytes(len(payload))


def close_frame(code: int, reason: bytes = b"") -> bytes:
    return frame(Opcode.CLOSE, struct.pack("!H", code) + reason)


class RawWebSocket:
    """A TCP connection on which the answer to a handshake has come, whatever it is."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._received = bytearray()
        self.status = 0
        self.headers: dict[str, str] = {}

    async def shake_hands(self, request: bytes) -> None:
        """Send a request and read the head of its answer."""
        await self.send(request)
        while (end := self._received.find(b"\r\n\r\n")) < 0:
            await self._receive_more()
        status_line, *header_lines = self._take(end + 4).decode().strip().split("\r\n")
        self.status = int(status_line.split()[1])
        pairs = (line.partition(":")[::2] for line in header_lines)
        self.headers = {name.lower(): value.strip() for name, value in pairs}

    async def body(self) -> bytes:
        """Of an answer that is no upgrade."""
        return await self._exactly(int(self.headers.get("content-length", 0)))

    async def send(self, *parts: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._socket, b"".join(parts))

    async def receive(self) -> Frame:
        """The next frame, control frames too. Raises EOFError or ConnectionError at the end."""
        first, length = await self._exactly(2)
        if length == 126:
            length = int.from_bytes(await self._exactly(2))
        elif length == 127:
            length = int.from_bytes(await self._exactly(8))
        return Frame(first & 0x0F, await self._exactly(length))

    async def receive_close(self) -> tuple[int, str]:
        """Code and reason of the server's close frame, whatever comes before it."""
        while (received := await self.receive()).opcode != Opcode.CLOSE:
            pass
        return int.from_bytes(received.payload[:2]), received.payload[2:].decode()

    async def drained(self) -> None:
        """Read until the server has ended the TCP connection, in good order or not."""
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                self._received.clear()
                await self._receive_more()

    async def _exactly(self, count: int) -> bytes:
        while len(self._received) < count:
            await self._receive_more()
        return self._take(count)

    async def _receive_more(self) -> None:
        data = await asyncio.get_running_loop().sock_recv(self._socket, 65536)
        if not data:
            raise EOFError("the server has ended the TCP connection")
        self._received += data

    def _take(self, count: int) -> bytes:
        taken = bytes(self._received[:count])
        del self._received[:count]
        return taken


@contextlib.asynccontextmanager
async def raw_websocket(
    port: int,
    *,
    token: str | None = None,
    target: str = "/ws",
    headers: Iterable[tuple[str, str]] = (),
    request_line: str | None = None,
    receive_buffer_bytes: int | None = None,
) -> AsyncIterator[RawWebSocket]:
    """Connect, with the token in the header, and send a handshake."""
    with socket.socket() as connection:
        connection.setblocking(False)
        if receive_buffer_bytes is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
        all_headers = [("Host", "localhost"), *UPGRADE, *headers]
        if token is not None:
            all_headers.append(("Authorization", f"Bearer {token}"))
        lines = [request_line or f"GET {target} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in all_headers]
        client = RawWebSocket(connection)
        await client.shake_hands("\r\n".join([*lines, "", ""]).encode())
        yield client
