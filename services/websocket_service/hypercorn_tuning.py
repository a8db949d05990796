"""What Hypercorn 0.18 does not do by itself, in one place.

Each override says what breaks without it. `install()` puts them in place; the service is correct
under any ASGI server without them, but such a server has to find dead peers by itself.

- `TunedWSStream`: invalid UTF-8 ends in a dropped connection (1006) where 1007 is due, and the
  application hears neither of pongs nor of the peer's close code. Subprotocols in several header
  lines would count as the last line alone, and one that can't be parsed would end in a dropped
  connection. Compression is not negotiated: it takes 93 of 162 KiB per idle connection (1,000
  connections, one message each), CPU for each message, and 4 MB that inflate to 4 GB would
  hold up everybody else for seconds. After its own 400, to a handshake that is none or to bytes
  that come before it is answered, Hypercorn leaves the socket open and the application in the
  belief that it has a client.
- `TunedH11Protocol`: no HTTP/2, which anybody may ask for in clear text. Its streams buffer
  without a bound for a client that does not read (500 MB in a test), and none of what is said here
  of a WebSocket's transport holds for one stream of many.
- `TunedTCPServer`: nothing else leads from a stream to its transport, and only aborting that
  releases a peer which has stopped reading. One HTTP client that does so in mid-response would
  keep the process from ever ending: Hypercorn's graceful timeout cancels the connection's task,
  which then waits for the transport's last byte.
- `TunedLogger`: its lines would appear twice, once in a format of their own.
- `TunedWorkerContext`: the application hears of a shutdown last, when its sockets have been cut.
  Here it is asked first, while everything still works. And a worker that SIGTERM reaches before
  the shutdown event does would die with its sockets: the first worker to end makes Hypercorn
  send one to all others.
"""

import asyncio
import contextlib
import multiprocessing
import re
import signal
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, Final

import h11
import hypercorn.asyncio.run
import hypercorn.protocol
import hypercorn.protocol.h11
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import EventWrapper, WorkerContext
from hypercorn.config import Config
from hypercorn.logging import Logger
from hypercorn.protocol.events import Body, Data, Event, Request, StreamClosed
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.protocol.ws_stream import FrameTooLargeError, WebsocketBuffer, WSStream
from hypercorn.typing import AppWrapper
from wsproto.connection import ConnectionState
from wsproto.events import CloseConnection, Message, Ping
from wsproto.frame_protocol import CloseReason as WireCode

PEER_EXTENSION: Final = "huleedu.peer"
_PING_FRAME: Final = b"\x89\x00"
# 16 bytes in base64 (RFC 6455, section 4.1).
_KEY: Final = re.compile(rb"[A-Za-z0-9+/]{22}==")

_writer: ContextVar[asyncio.StreamWriter] = ContextVar("writer")
_before_shutdown: list[Callable[[], Awaitable[None]]] = []
_transports: set[asyncio.WriteTransport] = set()
# What is left after the drain is HTTP. Shorter than Hypercorn's default graceful timeout of 3 s.
_LAST_RESPONSES_S: Final = 2.0


class Peer:
    """What the server knows of the other side of a WebSocket, below the messages."""

    __slots__ = ("_loop", "_writer", "close_code", "last_heard", "violated")

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._loop = asyncio.get_running_loop()
        self._writer = writer
        self.last_heard = self._loop.time()
        self.close_code: int | None = None
        self.violated: asyncio.Future[int] = self._loop.create_future()

    def heard(self) -> None:
        """A byte has come."""
        self.last_heard = self._loop.time()

    def violates(self, code: int) -> None:
        """An invalid frame has come; `code` is what it deserves."""
        if not self.violated.done():
            self.violated.set_result(code)

    def ping(self) -> None:
        """Write a ping frame without waiting."""
        if not self._writer.is_closing():
            self._writer.write(_PING_FRAME)

    def finish(self) -> None:
        """Say in TCP that nothing more will be written; TLS has no word for that."""
        if self._writer.can_write_eof():
            self._writer.write_eof()

    def abort(self) -> None:
        """Drop the TCP connection, whatever is still unsent."""
        self._writer.transport.abort()


class TunedWSStream(WSStream):
    """Tells the application about its peer, and lets it decide how a violation ends."""

    max_message_bytes = 65_536

    def __init__(self, app: AppWrapper, *args: Any, **kwargs: Any) -> None:
        self._peer = Peer(_writer.get())
        super().__init__(_with_peer(app, self._peer), *args, **kwargs)
        self._parser_failed = False
        # Counted in characters for text; the application counts bytes.
        self.buffer = WebsocketBuffer(self.max_message_bytes)

    async def handle(self, event: Event) -> None:
        """Note every sign of life, and leave nothing open that was refused."""
        if self._parser_failed and isinstance(event, Body | Data):
            return  # wsproto would only pile it up
        self._peer.heard()
        if isinstance(event, Request):
            event = _parsable(event)
        was_closed = self.closed
        await super().handle(event)
        if self.closed and not was_closed and not isinstance(event, StreamClosed):
            # Hypercorn has answered 400, to no valid upgrade or to bytes that came before ours was
            # answered, and would forget the socket, and an application that attends to it.
            if self.app_put is not None:
                await self.app_put(
                    {"type": "websocket.disconnect", "code": WireCode.ABNORMAL_CLOSURE}
                )
            await self.send(StreamClosed(stream_id=self.stream_id))

    async def _handle_events(self) -> None:
        for event in self.connection.events():
            if isinstance(event, Message):
                await self._on_message(event)
            elif isinstance(event, Ping):
                await self._send_wsproto_event(event.response())
            elif isinstance(event, CloseConnection):
                await self._on_close(event)

    async def _on_message(self, event: Message[Any]) -> None:
        if self._peer.violated.done():
            return  # read on for the peer's close frame only
        try:
            self.buffer.extend(event)
        except FrameTooLargeError:
            self._peer.violates(WireCode.MESSAGE_TOO_BIG)
            return
        if event.message_finished and self.app_put is not None:
            await self.app_put(self.buffer.to_message())
            self.buffer.clear()

    async def _on_close(self, event: CloseConnection) -> None:
        if self.connection.state in {ConnectionState.OPEN, ConnectionState.LOCAL_CLOSING}:
            # No close frame at all: this is how wsproto reports a frame it could not parse.
            self._parser_failed = True
            self._peer.violates(int(event.code))
            return
        self._peer.close_code = int(event.code)
        if self.connection.state is ConnectionState.REMOTE_CLOSING:
            await self._send_wsproto_event(event.response())
        await self.send(StreamClosed(stream_id=self.stream_id))

    async def _send_pings(self) -> None:
        """Leave that to the service, which also looks for the answers."""


def _parsable(request: Request) -> Request:
    """The same handshake without extensions, its subprotocols in one line of ASCII.

    Its key is left out where it is none, and another HTTP than 1.1 is said to be 1.0: Hypercorn
    refuses both.
    """
    others, subprotocols, keys = [], [], []
    for name, value in request.headers:
        if name.lower() == b"sec-websocket-protocol":
            subprotocols.append(value.decode("ascii", "replace").encode("ascii", "replace"))
        elif name.lower() == b"sec-websocket-key":
            keys.append(value)
        elif name.lower() != b"sec-websocket-extensions":
            others.append((name, value))
    if subprotocols:
        others.append((b"sec-websocket-protocol", b",".join(subprotocols)))
    if len(keys) == 1 and _KEY.fullmatch(keys[0]):
        others.append((b"sec-websocket-key", keys[0]))
    version = request.http_version if request.http_version == "1.1" else "1.0"
    return replace(request, headers=others, http_version=version)


def _with_peer(app: AppWrapper, peer: Peer) -> AppWrapper:
    async def with_peer(
        scope: Any, receive: Any, send: Any, sync_spawn: Any, call_soon: Any
    ) -> None:
        scope["extensions"][PEER_EXTENSION] = peer
        await app(scope, receive, send, sync_spawn, call_soon)

    return with_peer


class TunedH11Protocol(H11Protocol):
    """Stays with HTTP/1.1 whatever the client would rather speak."""

    async def _check_protocol(self, event: h11.Request) -> None:
        """Hypercorn's own looks for HTTP/2 here."""


class TunedTCPServer(TCPServer):
    """Lets the streams of a connection find its transport."""

    async def run(self) -> None:
        """Serve the connection; its streams are made in this context."""
        _writer.set(self.writer)
        transport = self.writer.transport
        _transports.add(transport)
        try:
            # Nobody but Hypercorn cancels this, at its graceful timeout. Passed on, asyncio (up
            # to 3.12) logs a traceback for it.
            with contextlib.suppress(asyncio.CancelledError):
                await super().run()
        finally:
            _transports.discard(transport)


class TunedLogger(Logger):
    """Leaves standard error to the service's logging; a file that was asked for stays."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if self.error_logger is not None and config.errorlog == "-":
            self.error_logger.handlers.clear()
        if self.access_logger is not None:
            self.access_logger.propagate = False


class _ShutdownEvent(EventWrapper):
    async def set(self) -> None:
        try:
            await asyncio.gather(*(callback() for callback in _before_shutdown))
        finally:
            await super().set()
            loop = asyncio.get_running_loop()
            loop.call_later(_LAST_RESPONSES_S, _abort_all)
            for number in (signal.SIGINT, signal.SIGTERM):
                if loop.remove_signal_handler(number):
                    # What it asks for is happening. While the loop is being closed it would be a
                    # traceback in the log, and afterwards kill a process about to end with 0;
                    # with several workers Hypercorn's parent sends one at just that time.
                    signal.signal(number, signal.SIG_IGN)


def _abort_all() -> None:
    for transport in tuple(_transports):
        transport.abort()


class TunedWorkerContext(WorkerContext):
    """Asks the application first when the server is to stop."""

    def __init__(self, max_requests: int | None) -> None:
        super().__init__(max_requests)
        self.terminated = _ShutdownEvent()
        self._terminating: asyncio.Task[None] | None = None
        # In a worker process: Hypercorn handles signals in the parent alone.
        if multiprocessing.parent_process() is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._on_sigterm)

    def _on_sigterm(self) -> None:
        self._terminating = asyncio.ensure_future(self.terminate.set())


def before_shutdown(callback: Callable[[], Awaitable[None]]) -> None:
    """Await `callback` when the server is told to stop, before it does anything about it."""
    _before_shutdown.append(callback)


def install(*, max_message_bytes: int) -> None:
    """Replace Hypercorn's classes for all servers of this process."""
    TunedWSStream.max_message_bytes = max_message_bytes
    Config.logger_class = TunedLogger
    hypercorn.asyncio.run.TCPServer = TunedTCPServer  # type: ignore[attr-defined]
    hypercorn.asyncio.run.WorkerContext = TunedWorkerContext  # type: ignore[attr-defined]
    hypercorn.protocol.h11.WSStream = TunedWSStream  # type: ignore[attr-defined]
    hypercorn.protocol.H11Protocol = TunedH11Protocol  # type: ignore[attr-defined]
    Config.alpn_protocols = ["http/1.1"]
