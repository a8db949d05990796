"""A WebSocket through ASGI messages, under a server of which nothing else is known."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

from services.websocket_service.outbound import OutboundFrame
from services.websocket_service.protocols import SocketListenerProtocol

# RFC 6455, section 7.1.5.
_NO_CLOSE_FRAME: Final = 1006

Message = MutableMapping[str, Any]
# Servers and frameworks have types of their own for these.
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


class AsgiSocket:
    """A `SocketProtocol`; an async context manager around the whole life of the connection.

    It writes one frame after the other in a task, during which it is not `writable`. A `send` that
    fails with OSError says no more than that the peer has left: `receive` is about to say how.
    """

    last_heard_at: float | None = None

    def __init__(self, receive: Receive, send: Send, *, max_message_bytes: int) -> None:
        self._receive = receive
        self._send = send
        self._max_message_bytes = max_message_bytes
        self._listener: SocketListenerProtocol | None = None
        self._accepted = False
        self._closed = False
        self._close_code: int | None = None
        self._unsent: list[Message] = []
        self._has_unsent = asyncio.Event()
        self._gone = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.writable = True

    async def __aenter__(self) -> Self:
        self._tasks = [
            asyncio.create_task(self._read(), name="asgi-read"),
            asyncio.create_task(self._write_out(), name="asgi-write"),
        ]
        for task in self._tasks:
            task.add_done_callback(self._finished)
        return self

    def _finished(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            # Raised on leaving; until then nobody waits for what can't come.
            self._left(None)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        for result in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result

    async def accept(self, subprotocol: str | None) -> None:
        if not self._accepted and not self._gone.is_set():
            self._accepted = True
            with contextlib.suppress(OSError):
                await self._send(
                    {"type": "websocket.accept", "subprotocol": subprotocol, "headers": []}
                )

    def listen(self, listener: SocketListenerProtocol | None) -> None:
        self._listener = listener
        if listener is not None and self._gone.is_set():
            listener.on_gone(self._close_code)

    def write(self, frames: Sequence[OutboundFrame]) -> None:
        self._put(*({"type": "websocket.send", "text": frame.text.decode()} for frame in frames))

    def ping(self) -> None:
        """ASGI has no message for it."""

    def close(self, code: int, reason: str) -> None:
        if not self._closed:
            self._put({"type": "websocket.close", "code": code, "reason": reason})
            self._closed = True

    async def gone(self) -> None:
        await self._gone.wait()

    def abort(self) -> None:
        self._left(None)

    def _put(self, *messages: Message) -> None:
        if self._closed or self._gone.is_set():
            return
        self._unsent += messages
        self._has_unsent.set()
        if self.writable:
            self.writable = False
            if self._listener is not None:
                self._listener.on_paused()

    async def _write_out(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                await self._has_unsent.wait()
                while self._unsent:
                    await self._send(self._unsent.pop(0))
                self._has_unsent.clear()
                self.writable = True
                if self._listener is not None:
                    self._listener.on_writable()

    async def _read(self) -> None:
        while (message := await self._receive())["type"] != "websocket.disconnect":
            if message["type"] == "websocket.receive":
                self._on_message(message)
        code = message.get("code")
        self._left(None if code == _NO_CLOSE_FRAME else code)

    def _on_message(self, message: Message) -> None:
        listener = self._listener
        if listener is None or not listener.on_frame():
            return
        text = message.get("text")
        if text is None:
            listener.on_message(message.get("bytes") or b"")
        elif len(text.encode()) > self._max_message_bytes:
            listener.on_violation(1009)
        else:
            listener.on_message(text)

    def _left(self, close_code: int | None) -> None:
        if not self._gone.is_set():
            self._close_code = close_code
            self._gone.set()
            if self._listener is not None:
                self._listener.on_gone(close_code)
