"""A TCP proxy that misbehaves on demand, to put between a client and a server."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from types import TracebackType
from typing import Self

_READ_SIZE_BYTES = 64 * 1024
# SO_LINGER with no time: closing sends a reset.
_RESET = struct.pack("ii", 1, 0)
_MESSAGES = (b"*3\r\n$7\r\nmessage\r\n", b"*3\r\n$8\r\nsmessage\r\n")


def is_message(reply: bytes) -> bool:
    """Whether this RESP2 reply is what somebody has published."""
    return reply.startswith(_MESSAGES)


class TcpProxy:
    """Forwards a free loopback port to `target_port`, until it is told to do otherwise.

    An async context manager. With `keep`, what the server sends has to be RESP2, and the client
    gets those replies for which `keep(reply)` is true, each a whole one with its line ends:
    `lambda reply: not is_message(reply)` makes a subscriber deaf while its pings are answered.
    """

    def __init__(self, target_port: int, *, keep: Callable[[bytes], bool] | None = None) -> None:
        self._target_port = target_port
        self._keep = keep
        self._listener: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._to_server = asyncio.Event()
        self._to_client = asyncio.Event()
        self.port = 0
        self.accepted = 0

    @property
    def url(self) -> str:
        """`redis://127.0.0.1:<port>`."""
        return f"redis://127.0.0.1:{self.port}"

    @property
    def connections(self) -> int:
        """How many connections are open; `accepted` counts those that ever were."""
        return len(self._connections)

    async def __aenter__(self) -> Self:
        self.flow()
        await self.accept()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.refuse()
        await self.cut()

    async def refuse(self) -> None:
        """Refuse new connections; those that are open stay."""
        listener, self._listener = self._listener, None
        if listener is not None:
            # `wait_closed()` waits for the connections too from Python 3.12 on.
            listener.close()

    async def accept(self) -> None:
        """Take new connections again, on the same port."""
        if self._listener is None:
            self._listener = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
            self.port = self._listener.sockets[0].getsockname()[1]

    async def cut(self, *, reset: bool = False) -> None:
        """End every open connection: politely, or with a reset to the client."""
        connections = dict(self._connections)
        for task, writer in connections.items():
            if reset:
                connected: socket.socket = writer.get_extra_info("socket")
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            task.cancel()
        if connections:
            await asyncio.wait(connections)

    def hold(self, *, to_server: bool = True, to_client: bool = True) -> None:
        """Keep what comes in from now on: connections stay, and are accepted, but say nothing."""
        if to_server:
            self._to_server.clear()
        if to_client:
            self._to_client.clear()

    def flow(self) -> None:
        """Forward again, beginning with what was held."""
        self._to_server.set()
        self._to_client.set()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or self._listener is None:  # it came while the listener was closed
            writer.transport.abort()
            return
        self._connections[task] = writer
        self.accepted += 1
        try:
            # An end of this kind is what the proxy is for.
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await self._forward(reader, writer)
        finally:
            del self._connections[task]
            writer.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target_reader, target_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        try:
            pumps = [
                asyncio.create_task(_pump(reader, target_writer, self._to_server, None)),
                asyncio.create_task(_pump(target_reader, writer, self._to_client, self._keep)),
            ]
            try:
                # One end that is closed ends both: what is still on its way is lost.
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            target_writer.transport.abort()


async def _pump(
    source: asyncio.StreamReader,
    sink: asyncio.StreamWriter,
    flowing: asyncio.Event,
    keep: Callable[[bytes], bool] | None,
) -> None:
    pending = b""
    while data := await source.read(_READ_SIZE_BYTES):
        await flowing.wait()
        if keep is not None:
            replies, pending = split_replies(pending + data)
            data = b"".join(reply for reply in replies if keep(reply))
        sink.write(data)
        await sink.drain()


def split_replies(data: bytes) -> tuple[list[bytes], bytes]:
    """The whole RESP2 replies at the beginning of `data`, and the rest."""
    replies = []
    start = 0
    while (end := _end_of_reply(data, start)) is not None:
        replies.append(data[start:end])
        start = end
    return replies, data[start:]


def _end_of_reply(data: bytes, start: int) -> int | None:
    line_end = data.find(b"\r\n", start)
    if line_end < 0:
        return None
    end: int | None = line_end + 2
    match data[start : start + 1]:
        case b"$":
            size_bytes = int(data[start + 1 : line_end])
            if size_bytes >= 0:
                end = line_end + 2 + size_bytes + 2
                return end if end <= len(data) else None
        case b"*":
            for _ in range(int(data[start + 1 : line_end])):
                if end is not None:
                    end = _end_of_reply(data, end)
    return end
