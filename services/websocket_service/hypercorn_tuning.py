"""What Hypercorn 0.18 does not do by itself, in one place.

Each override says what breaks, or what it costs, without it. `install()` puts them in place; the
service is correct under any ASGI server without them, as the setting HYPERCORN_TUNING=false shows.
Figures: Python 3.11, uvloop, 500 clients of 250-byte payloads, 2,000 idle connections.

- `TunedWSStream`: answers the upgrade and hands its transport over to a `WebSocketWire`. Through
  ASGI messages and wsproto a CPU-second delivers 39,000 payloads, straight to the transport
  130,000. Invalid UTF-8 would end in a dropped connection (1006) where 1007 is due, floods of pings
  would not be counted, and the application would hear neither of pongs nor of the peer's close
  code. Hypercorn agrees on permessage-deflate with whoever offers it, which takes 93 KiB of each
  connection, and 4 MB that inflate to 4 GB hold up everybody else for seconds. Lists in several
  header lines would count as the last line alone, and one that can't be parsed would end in a
  dropped connection. After its own 400, to a handshake that is none or to bytes that come before it
  is answered, Hypercorn leaves the socket open and the application in the belief that it has a
  client.
- `_ApplicationTasks`, `_Inbox`: with the transport's hand-over Hypercorn's part ends. Its task,
  parsers, queue and buffers, which would stay as long as the application, are about a third of 40
  KiB.
- `TunedH11Protocol`: headers over the limit would pass if they come at once. No HTTP/2, which
  anybody may ask for in clear text: its streams buffer without a bound for a client that does not
  read (500 MB in a test), and none of what is said here of a transport holds for one stream of
  many. And a request that says twice where it ends would be served, with what may be hidden behind
  it.
- `TunedTCPServer`: nothing else leads from a stream to its transport, and only aborting that
  releases a peer which has stopped reading. One HTTP client that does so in mid-response would keep
  the process from ever ending: Hypercorn's graceful timeout cancels the connection's task, which
  then waits for the transport's last byte. The kernel would hold megabytes for a slow peer, and try
  for a quarter of an hour to reach one that is gone.
- `TunedLogger`: its lines would appear twice, once in a format of their own.
- `TunedWorkerContext`: the application hears of a shutdown last, when its sockets have been cut.
  Here it is asked first, while everything still works. And a worker of plain Hypercorn that SIGTERM
  reaches before the shutdown event does would die with its sockets: the first worker to end makes
  Hypercorn send one to all others.
"""

import asyncio
import contextlib
import multiprocessing
import re
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from contextvars import Context, ContextVar
from dataclasses import replace
from typing import Any, Final, NoReturn

import h11
import hypercorn.asyncio.run
import hypercorn.protocol
import hypercorn.protocol.h11
from hypercorn.asyncio.task_group import _handle
from hypercorn.asyncio.tcp_server import MAX_RECV, TCPServer
from hypercorn.asyncio.worker_context import EventWrapper, WorkerContext
from hypercorn.config import Config
from hypercorn.events import Closed, RawData
from hypercorn.events import Event as TransportEvent
from hypercorn.logging import Logger
from hypercorn.protocol.events import Body, Data, Event, Request, StreamClosed
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.protocol.ws_stream import ASGIWebsocketState, WSStream
from hypercorn.typing import AppWrapper, ASGIReceiveEvent, ASGISendEvent, Scope

from services.websocket_service.extension_offers import accepted
from services.websocket_service.wire import WebSocketWire

_Send = Callable[[ASGISendEvent | None], Awaitable[None]]

WIRE_EXTENSION: Final = "huleedu.wire"
_LISTS: Final = frozenset({b"sec-websocket-protocol", b"sec-websocket-extensions"})
_LENGTHS: Final = frozenset({b"content-length", b"transfer-encoding"})
_ANSWERED: Final = frozenset({ASGIWebsocketState.RESPONSE, ASGIWebsocketState.HTTPCLOSED})
# 16 bytes in base64 (RFC 6455, section 4.1).
_KEY: Final = re.compile(rb"[A-Za-z0-9+/]{22}==")

_server: ContextVar["TunedTCPServer"] = ContextVar("server")
_before_shutdown: list[Callable[[], Awaitable[None]]] = []
_transports: set[asyncio.Transport] = set()
_applications: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
# What is left after the drain is HTTP. Shorter than Hypercorn's default graceful timeout of 3 s.
_LAST_RESPONSES_S: Final = 2.0
# Bytes not yet on their way that the kernel holds for a peer: no memory of ours, but the machine's.
_MAX_UNSENT_BYTES: Final = 65_536
# Of Linux; the socket module has no name for it.
_TCP_NOTSENT_LOWAT: Final = 25


class TunedWSStream(WSStream):
    """Reads the upgrade and writes its answer; everything else is the wire's."""

    max_message_bytes = 65_536
    compression = False

    def __init__(self, app: AppWrapper, *args: Any, **kwargs: Any) -> None:
        self._server = _server.get()
        self._wire = WebSocketWire(
            self._server.transport,
            self._answer,
            max_message_bytes=self.max_message_bytes,
        )
        super().__init__(_with_wire(app, self._wire), *args, **kwargs)
        self.task_group = _ApplicationTasks(  # type: ignore[assignment]  # nobody enters it
            self._server.writer
        )

    async def handle(self, event: Event) -> None:
        """Leave nothing open that was refused."""
        if isinstance(event, Request):
            event = _parsable(event)
        elif isinstance(event, Body | Data) and self.state in _ANSWERED:
            # What follows a 404 is nobody's: Hypercorn would answer a second time, and fail at it.
            return
        was_closed = self.closed
        await super().handle(event)
        if isinstance(event, StreamClosed):
            self._wire.lost()
        elif self.closed and not was_closed:
            # Hypercorn has answered 400, to no valid upgrade or to bytes that came before ours was
            # answered, and would forget the socket, and an application that attends to it.
            self._wire.lost()
            await self.send(StreamClosed(stream_id=self.stream_id))

    async def _answer(self, subprotocol: str | None) -> None:
        """Answer the upgrade, and hand the transport over."""
        if self.closed or self._server.transport.is_closing():
            # An upgrade that crosses with the end of an idle connection: nobody reads the answer.
            self._wire.lost()
            return
        self.state = ASGIWebsocketState.CONNECTED
        # Hypercorn would agree on what it offers itself.
        offers, self.handshake.extensions = self.handshake.extensions, None
        status, headers, _ = self.handshake.accept(subprotocol, ())
        extensions = accepted(", ".join(offers)) if self.compression and offers else None
        if extensions is not None:
            headers.append((b"sec-websocket-extensions", extensions.encode()))
        headers += self.config.response_headers("h11")
        lines = (b"%b: %b\r\n" % header for header in headers)
        self._server.writer.write(b"HTTP/1.1 101 \r\n%b\r\n" % b"".join(lines))
        await self.config.log.access(
            self.scope, {"status": status, "headers": []}, time.time() - self.start_time
        )
        self._wire.take_over(compressed=extensions is not None)
        self._server.hand_over(self._wire)
        # The other way to here, with all that Hypercorn knows of the connection.
        self.send = _no_stream
        del self.handshake, self._server

    async def app_send(self, message: ASGISendEvent | None) -> None:
        """The application sends through the wire; here it says that it has finished."""
        if not self._wire.taken_over:
            await super().app_send(message)
        elif message is None:
            self._wire.finish()


async def _no_stream(_event: Event) -> None:
    """Nothing goes through Hypercorn any more."""


def _parsable(request: Request) -> Request:
    """The same handshake, each list of its in one line of ASCII.

    Its key is left out where it is none, and another HTTP than 1.1 is said to be 1.0: Hypercorn
    refuses both.
    """
    others, keys = [], []
    lists: dict[bytes, list[bytes]] = {}
    for name, value in request.headers:
        if name.lower() in _LISTS:
            text = value.decode("ascii", "replace").encode("ascii", "replace")
            lists.setdefault(name.lower(), []).append(text)
        elif name.lower() == b"sec-websocket-key":
            keys.append(value)
        else:
            others.append((name, value))
    others += ((name, b",".join(values)) for name, values in lists.items())
    if len(keys) == 1 and _KEY.fullmatch(keys[0]):
        others.append((b"sec-websocket-key", keys[0]))
    version = request.http_version if request.http_version == "1.1" else "1.0"
    return replace(request, headers=others, http_version=version)


def _with_wire(app: AppWrapper, wire: WebSocketWire) -> AppWrapper:
    async def with_wire(
        scope: Any, receive: Any, send: Any, sync_spawn: Any, call_soon: Any
    ) -> None:
        scope["extensions"][WIRE_EXTENSION] = wire
        await app(scope, receive, send, sync_spawn, call_soon)

    return with_wire


class TunedH11Protocol(H11Protocol):
    """Stays with HTTP/1.1 whatever the client would rather speak, and measures all headers."""

    async def handle(self, event: TransportEvent) -> None:
        """Show h11 no more at once than a request's headers may take, and a byte."""
        if not isinstance(event, RawData):
            await super().handle(event)
            return
        rest = event.data
        while isinstance(self.connection, h11.Connection):
            if self.connection.their_state is h11.ERROR:
                return
            unparsed, _ = self.connection.trailing_data
            room = max(1, self.config.h11_max_incomplete_size + 1 - len(unparsed))
            await super().handle(RawData(rest[:room]))
            rest = rest[room:]
            if not rest:
                return
        await super().handle(RawData(rest))

    async def _check_protocol(self, event: h11.Request) -> None:
        """Hypercorn's own looks for HTTP/2 here."""

    async def _create_stream(self, request: h11.Request) -> None:
        """Refuse a request that says twice where it ends, and what may be hidden behind it.

        A proxy that reads the other of the two takes the rest for a request of somebody else's
        (RFC 9112, section 6.1). h11 would go on with it.
        """
        if {name for name, _ in request.headers} >= _LENGTHS:
            await self._send_error_response(400)
            await self.send(Closed())
            return
        await super()._create_stream(request)


class _ApplicationTasks:
    """Runs the application of a WebSocket, which may outlive its `TCPServer`.

    It takes the place of that one's task group. The service's drain waits for what it runs.
    """

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    async def spawn_app(
        self, app: AppWrapper, config: Config, scope: Scope, send: _Send
    ) -> Callable[[ASGIReceiveEvent], Awaitable[None]]:
        inbox = _Inbox()
        # A copy of this context, in a task or with a callback, would keep the TCPServer.
        context = Context()
        task = asyncio.create_task(
            _handle(app, config, scope, inbox.get, send, _refuse, _refuse), context=context
        )
        # Kept, since it closes its transport when nobody has it any more.
        _applications[task] = self._writer
        task.add_done_callback(_applications.pop, context=context)
        return inbox.put

    def spawn(self, func: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Hypercorn's pings: the service sends its own, and looks for the answers."""


class _Inbox:
    """The two messages of a WebSocket of which the wire knows all others.

    An `asyncio.Queue` takes 2 KiB.
    """

    __slots__ = ("_messages", "_put")

    def __init__(self) -> None:
        self._messages: list[ASGIReceiveEvent] = []
        self._put: asyncio.Future[None] | None = None

    async def put(self, message: ASGIReceiveEvent) -> None:
        self._messages.append(message)
        if self._put is not None and not self._put.done():
            self._put.set_result(None)

    async def get(self) -> ASGIReceiveEvent:
        while not self._messages:
            self._put = asyncio.get_running_loop().create_future()
            await self._put
        return self._messages.pop(0)


def _refuse(*_: object) -> NoReturn:
    raise RuntimeError("a WebSocket's application is no WSGI application")


class TunedTCPServer(TCPServer):
    """Lets the streams of a connection find it, and one of them take its transport."""

    user_timeout_s = 20.0
    _wire: WebSocketWire | None = None

    @property
    def transport(self) -> asyncio.Transport:
        """What is under the reader and the writer."""
        return self.writer.transport  # type: ignore[return-value] # it also reads

    async def run(self) -> None:
        """Serve the connection until it ends, or its transport has changed hands."""
        _server.set(self)
        transport = self.transport
        _transports.add(transport)
        self._bound_kernel()
        try:
            # Nobody but Hypercorn cancels this, at its graceful timeout. Passed on, asyncio (up
            # to 3.12) logs a traceback for it.
            with contextlib.suppress(asyncio.CancelledError):
                await super().run()
        finally:
            _transports.discard(transport)
            if self._wire is not None:
                # Parsers and buffers, which whoever keeps the writer would keep as well.
                del self.protocol

    def _bound_kernel(self) -> None:
        """Let it hold little for a slow peer, and drop one that takes nothing for too long."""
        # Connections inherit it from their listener, which is there before this module is.
        raw = self.transport.get_extra_info("socket")
        if hasattr(socket, "TCP_USER_TIMEOUT") and raw.family != socket.AF_UNIX:
            user_timeout_ms = round(self.user_timeout_s * 1000)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, user_timeout_ms)
            raw.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, _MAX_UNSENT_BYTES)

    def hand_over(self, wire: WebSocketWire) -> None:
        """Read no more: what comes is the wire's."""
        self._wire = wire
        self.reader.feed_eof()

    async def _read_data(self) -> None:
        while not self.reader.at_eof():
            try:
                data = await self.reader.read(MAX_RECV)
            except OSError:
                break
            if self._wire is not None:
                self._wire.data_received(data)
            else:
                await self.protocol.handle(RawData(data))
        if self._wire is None:
            await self.protocol.handle(Closed())

    async def _close(self) -> None:
        if self._wire is None:
            await super()._close()


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
    for transport in (*_transports, *(writer.transport for writer in _applications.values())):
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


def install(*, max_message_bytes: int, user_timeout_s: float, compression: bool = False) -> None:
    """Replace Hypercorn's classes for all servers of this process."""
    TunedWSStream.max_message_bytes = max_message_bytes
    TunedTCPServer.user_timeout_s = user_timeout_s
    TunedWSStream.compression = compression
    Config.logger_class = TunedLogger
    hypercorn.asyncio.run.TCPServer = TunedTCPServer  # type: ignore[attr-defined]
    hypercorn.asyncio.run.WorkerContext = TunedWorkerContext  # type: ignore[attr-defined]
    hypercorn.protocol.h11.WSStream = TunedWSStream  # type: ignore[attr-defined]
    hypercorn.protocol.H11Protocol = TunedH11Protocol  # type: ignore[attr-defined]
    Config.alpn_protocols = ["http/1.1"]
