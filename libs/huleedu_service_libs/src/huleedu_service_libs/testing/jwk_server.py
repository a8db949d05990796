"""A key server on loopback that does as it is told."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Self

from huleedu_service_libs.testing.signing_keys import SigningKey, key_set

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping
    from types import TracebackType

__all__ = ["JwkServer"]


class JwkServer:
    """Answers each HTTP request on a free loopback port; an async context manager.

    It begins with the keys that it is given. After that, each from the next request on:

        server.publish(key, …)        these keys, or mappings that are put in as they are
        server.answer(body, …)        these bytes: garbage, an empty set, another status, headers
        server.hang()                 nothing; the connection stays open
        server.stall()                the beginning of a key set; the connection stays open
        await server.go_away()        the port refuses, open connections are cut
        await server.come_back()      the same port again

    `url` is what JWT_JWKS_URL wants, `requests` counts those that have come, and
    `await server.asked(n)` returns when there have been n.

        key = SigningKey.generate("ES256", "key-1")
        async with JwkServer(key) as server:
            settings = Settings(JWT_ALGORITHM="ES256", JWT_JWKS_URL=server.url)
            token = key.sign({"sub": "teacher-1", …})
    """

    def __init__(
        self, *keys: SigningKey | Mapping[str, Any], tls: ssl.SSLContext | None = None
    ) -> None:
        self._tls = tls
        self._listener: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._reply = b""
        self._closes = True
        self._came = asyncio.Condition()
        self.port = 0
        self.requests = 0
        self.last_request = b""
        """Request line and headers of the last one, as they came."""
        self.publish(*keys)

    @property
    def url(self) -> str:
        """`http://127.0.0.1:<port>/.well-known/jwks.json`, or https with `tls`."""
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://127.0.0.1:{self.port}/.well-known/jwks.json"

    def publish(self, *keys: SigningKey | Mapping[str, Any]) -> None:
        """Answer with a set of these keys."""
        self.answer(key_set(*keys))

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
        self._reply = "\r\n".join([*lines, "", ""]).encode() + body
        self._closes = True

    def hang(self) -> None:
        """Take requests and say nothing, until another answer is set."""
        self._reply = b""
        self._closes = False

    def stall(self) -> None:
        """Begin an answer and never end it, until another one is set."""
        self.answer(b'{"keys": [', headers={"Content-Length": "1000"})
        self._closes = False

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
        reply, closes = self._reply, self._closes
        async with self._came:
            self.requests += 1
            self._came.notify_all()
        writer.write(reply)
        await writer.drain()
        if not closes:
            await reader.read()
        writer.close()
        await writer.wait_closed()
