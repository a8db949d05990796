"""An HTTP server on loopback that does as it is told, in place of another service."""

from __future__ import annotations

import asyncio
import contextlib
from enum import Enum, auto
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping
    from types import TracebackType

__all__ = ["StandInServer"]

_DRIP_INTERVAL_S: Final = 0.02


class _Then(Enum):
    """What becomes of the connection once the reply is written."""

    CLOSE = auto()
    HOLD = auto()
    DRIP = auto()


class StandInServer:
    """Answers each HTTP request on a free loopback port; an async context manager.

    From the next request on, each of these in place of the one before:

        server.answer(body, …)        these bytes, with this status and headers
        server.say(reply)             these bytes, whether they are HTTP or not
        server.hang()                 nothing; the connection stays open
        server.stall(beginning)       the beginning of a body; the connection stays open
        server.drip(beginning)        that, and then a byte now and again, without end
        server.break_off(beginning)   that, and the end of the connection
        await server.go_away()        the port refuses, open connections are cut
        await server.come_back()      the same port again

    `requests` counts those that have come, and `await server.asked(n)` returns when there have been
    n.
    """

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._listener: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._came = asyncio.Condition()
        self.port = 0
        self.requests = 0
        self.last_request = b""
        """Request line and headers of the last one, as they came."""
        self.answer(b"")

    @property
    def origin(self) -> str:
        """`http://127.0.0.1:<port>`, or https with `tls`."""
        return f"{'http' if self._tls is None else 'https'}://127.0.0.1:{self.port}"

    def answer(
        self,
        body: bytes,
        *,
        status: str = "200 OK",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Answer with this; `headers` replace those of the same name."""
        fields = {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Connection": "close",
            **(headers or {}),
        }
        lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in fields.items())]
        self.say("\r\n".join([*lines, "", ""]).encode() + body)

    def say(self, reply: bytes, *, closes: bool = True) -> None:
        """Reply with these bytes, and close the connection or leave it open."""
        self._reply = reply
        self._then = _Then.CLOSE if closes else _Then.HOLD

    def hang(self) -> None:
        """Take requests and say nothing, until another answer is set."""
        self.say(b"", closes=False)

    def stall(self, beginning: bytes) -> None:
        """Begin an answer and never end it, until another one is set."""
        self._begin(beginning, _Then.HOLD)

    def drip(self, beginning: bytes) -> None:
        """Begin an answer and go on with a blank every 20 ms, until the client has enough."""
        self._begin(beginning, _Then.DRIP)

    def break_off(self, beginning: bytes) -> None:
        """Begin an answer and close the connection."""
        self._begin(beginning, _Then.CLOSE)

    def _begin(self, beginning: bytes, then: _Then) -> None:
        self.answer(beginning, headers={"Content-Length": "1000000"})
        self._then = then

    async def asked(self, requests: int) -> None:
        """Return when this many requests have come since the beginning."""
        async with self._came:
            await self._came.wait_for(lambda: self.requests >= requests)

    async def go_away(self) -> None:
        """Refuse connections and cut those that are open."""
        listener, self._listener = self._listener, None
        if listener is not None:
            # `wait_closed()` waits for the connections too from Python 3.12 on.
            listener.close()
        connections = dict(self._connections)
        for task in connections:
            task.cancel()
        if connections:
            await asyncio.wait(connections)

    async def come_back(self) -> None:
        """Listen again, on the same port."""
        if self._listener is None:
            self._listener = await asyncio.start_server(
                self._connected, "127.0.0.1", self.port, ssl=self._tls
            )
            self.port = self._listener.sockets[0].getsockname()[1]

    async def __aenter__(self) -> Self:
        await self.come_back()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.go_away()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or self._listener is None:  # it came while the listener was closed
            writer.transport.abort()
            return
        self._connections[task] = writer
        try:
            # To be cut off is what it is for.
            with contextlib.suppress(OSError, EOFError, asyncio.CancelledError):
                await self._answer(reader, writer)
        finally:
            del self._connections[task]
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.last_request = await reader.readuntil(b"\r\n\r\n")
        reply, then = self._reply, self._then
        async with self._came:
            self.requests += 1
            self._came.notify_all()
        writer.write(reply)
        await writer.drain()
        match then:
            case _Then.HOLD:
                await reader.read()
            case _Then.DRIP:
                while not reader.at_eof():
                    writer.write(b" ")
                    await writer.drain()
                    await asyncio.sleep(_DRIP_INTERVAL_S)
            case _Then.CLOSE:
                pass
        writer.close()
        await writer.wait_closed()
