"""A real Hypercorn with the tuning, and clients that misbehave."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import hypercorn.asyncio
import hypercorn.asyncio.run
import hypercorn.protocol
import hypercorn.protocol.h11
import pytest
import websockets
from hypercorn.config import Config

from services.websocket_service import hypercorn_tuning, wire
from services.websocket_service.hypercorn_tuning import (
    WIRE_EXTENSION,
    TunedTCPServer,
    TunedWorkerContext,
    TunedWSStream,
)
from services.websocket_service.outbound import OutboundFrame
from services.websocket_service.tests.fakes import GIVE_UP_AFTER_S
from services.websocket_service.tests.wire.client_frames import MAX_MESSAGE_BYTES
from services.websocket_service.tests.wire.listener import Listener
from services.websocket_service.wire import WebSocketWire

USER_TIMEOUT_S = 7
# More than the buffers of both ends of a socket hold.
HUGE = 64 * 1024 * 1024

REQUEST = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)

Message = dict[str, Any]


@dataclass
class Call:
    """One call of the application, as ASGI has it."""

    scope: Message
    receive: Callable[[], Awaitable[Message]]
    send: Callable[[Message], Awaitable[None]]

    @property
    def wire(self) -> WebSocketWire:
        wire = self.scope["extensions"][WIRE_EXTENSION]
        assert isinstance(wire, WebSocketWire)
        return wire

    def text(self, text: str) -> None:
        self.wire.write([OutboundFrame(text.encode(), made_at=0.0)])


Handler = Callable[[Call], Awaitable[None]]


@contextlib.asynccontextmanager
async def serving(handler: Handler, config: Config | None = None) -> AsyncIterator["Server"]:
    """Hypercorn in this process, on a port of its own; left with the server stopped."""
    # Listening before the server runs: a client that comes early waits in the queue.
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        config = config or Config()
        config.bind = [f"fd://{listening.detach()}"]
    server = Server(handler, config, port)
    try:
        async with asyncio.timeout(GIVE_UP_AFTER_S):
            yield server
    finally:
        async with asyncio.timeout(GIVE_UP_AFTER_S):
            await server.stop()


class Server:
    def __init__(self, handler: Handler, config: Config, port: int) -> None:
        self.port = port
        self._handler = handler
        self._told_to_stop = asyncio.Event()
        self._task = asyncio.create_task(
            hypercorn.asyncio.serve(
                cast("Any", self._app), config, shutdown_trigger=self._told_to_stop.wait
            )
        )

    async def stop(self) -> None:
        """Tell the server to stop, and return once it has."""
        self._told_to_stop.set()
        await self._task

    def connect(self, **options: Any) -> websockets.connect:
        return websockets.connect(f"ws://127.0.0.1:{self.port}", proxy=None, **options)

    async def answer(self, request: bytes) -> bytes:
        """All that comes for a request, up to the end of the connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(request)
        try:
            return await reader.read()
        finally:
            writer.close()
            await writer.wait_closed()

    async def _app(self, scope: Message, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await self._handler(Call(scope, receive, send))
            return
        while (await receive())["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})


@pytest.fixture(autouse=True)
def tuning(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tuning is installed for one test and gone afterwards."""
    for owner, name in (
        (hypercorn.asyncio.run, "TCPServer"),
        (hypercorn.asyncio.run, "WorkerContext"),
        (hypercorn.protocol.h11, "WSStream"),
        (hypercorn.protocol, "H11Protocol"),
        (Config, "logger_class"),
        (Config, "alpn_protocols"),
        (TunedWSStream, "max_message_bytes"),
        (TunedWSStream, "compression"),
        (TunedTCPServer, "user_timeout_s"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    monkeypatch.setattr(hypercorn_tuning, "_before_shutdown", [])
    hypercorn_tuning.install(max_message_bytes=MAX_MESSAGE_BYTES, user_timeout_s=USER_TIMEOUT_S)


@contextlib.asynccontextmanager
async def upgraded(
    server: "Server", *headers: str
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A bare socket after its upgrade; nothing is read from it but what the test reads."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
    more = "".join(f"{header}\r\n" for header in headers).encode("latin1")
    writer.write(REQUEST.removesuffix(b"\r\n") + more + b"\r\n")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def test_transport_changes_hands() -> None:
    """Once accepted, a connection is the wire's alone, and every frame of it is heard there."""
    listener = Listener()
    received: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

    async def handler(call: Call) -> None:
        received.set_result(await call.receive())
        call.wire.listen(listener)
        await call.wire.accept(None)
        await call.wire.accept("a second time")
        await call.wire.gone()

    async with serving(handler) as server, server.connect() as client:
        assert await received == {"type": "websocket.connect"}
        await client.send(["in ", "three ", "parts"])
        await client.send(b"binary")
        await (await client.ping())
        await client.close(4321)
        assert await listener.left() == 4321
    assert listener.messages == ["in three parts", b"binary"]


async def test_limit_is_the_installed_one() -> None:
    """A message over the limit is reported, and the application says how that ends."""
    listener = Listener()

    async def handler(call: Call) -> None:
        call.wire.listen(listener)
        await call.wire.accept(None)
        call.wire.close(await listener.violated(), "because")
        await call.wire.gone()

    async with serving(handler) as server, server.connect() as client:
        await client.send("x" * (MAX_MESSAGE_BYTES + 1))
        await client.wait_closed()
        assert (client.close_code, client.close_reason) == (1009, "because")


async def test_what_comes_right_behind_the_answer_is_heard() -> None:
    """A client that talks as soon as it is answered loses no byte and no order."""
    listener = Listener()

    async def handler(call: Call) -> None:
        call.wire.listen(listener)
        await call.wire.accept(None)
        await call.wire.gone()

    async with serving(handler) as server:
        for _ in range(20):
            async with server.connect() as client:
                await client.send("1")
                await client.send("2")
    assert listener.messages == ["1", "2"] * 20


async def test_end_of_the_application_ends_the_connection() -> None:
    """No socket outlives the application that attends to it; its last words still go out."""

    async def handler(call: Call) -> None:
        await call.wire.accept(None)
        call.text("last words")

    async with serving(handler) as server, upgraded(server) as (reader, _):
        assert await reader.read() == b"\x81\x0alast words"


async def test_failure_of_the_application_ends_the_connection() -> None:
    """So it does where the application fails."""

    async def handler(call: Call) -> None:
        await call.wire.accept(None)
        raise RuntimeError("a defect")

    async with serving(handler) as server, upgraded(server) as (reader, _):
        assert await reader.read() == b""


async def test_client_that_leaves_before_it_is_accepted() -> None:
    """Of a client that leaves while it waits for the answer, the application hears."""
    left = asyncio.Event()

    async def handler(call: Call) -> None:
        await call.wire.gone()
        await call.wire.accept(None)
        left.set()

    async with serving(handler) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(REQUEST)
        writer.close()
        await left.wait()
        await writer.wait_closed()


async def test_compression_is_declined() -> None:
    """A client that offers compression, as every browser does, is served without."""

    async def handler(call: Call) -> None:
        await call.wire.accept(None)
        call.text("plain")
        await call.wire.gone()

    async with serving(handler) as server, server.connect(compression="deflate") as client:
        assert await client.recv() == "plain"
        assert client.protocol.extensions == []


async def test_server_sends_no_pings_of_its_own() -> None:
    """Pings are the service's affair: those that nobody checks the answers of are not sent."""
    config = Config()
    config.websocket_ping_interval = 0.001
    seen = asyncio.Event()

    async def handler(call: Call) -> None:
        await call.wire.accept(None)
        for _ in range(5):
            await asyncio.sleep(0)  # Hypercorn's first ping would be sent in the next turn
        call.text("first")
        await seen.wait()

    async with serving(handler, config) as server, upgraded(server) as (reader, _):
        assert await reader.readexactly(7) == b"\x81\x05first"
        seen.set()


async def test_kernel_gives_up_a_peer_that_takes_nothing() -> None:
    """A peer whose machine has vanished is not written to for a quarter of an hour."""
    timeouts_ms = []

    async def handler(call: Call) -> None:
        raw = call.wire._transport.get_extra_info("socket")
        timeouts_ms.append(raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT))
        await call.wire.accept(None)

    async with serving(handler) as server, server.connect() as client:
        await client.wait_closed()
    assert timeouts_ms == [USER_TIMEOUT_S * 1000]


async def test_abort_releases_a_client_that_reads_nothing() -> None:
    """A client that has stopped reading cannot hold on to its connection."""
    released = asyncio.Event()

    async def handler(call: Call) -> None:
        await call.wire.accept(None)
        call.text("x" * HUGE)
        assert not call.wire.writable
        call.wire.abort()
        await call.wire.gone()
        call.wire.ping()  # into the void
        released.set()

    async with serving(handler) as server, upgraded(server):
        await released.wait()


async def test_client_that_does_not_read_the_last_words_is_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """When the application has finished, its client has so long to take what is unsent."""
    monkeypatch.setattr(wire, "CLOSING_S", 0.01)
    wires: asyncio.Queue[WebSocketWire] = asyncio.Queue()

    async def handler(call: Call) -> None:
        await call.wire.accept(None)
        call.text("x" * HUGE)
        wires.put_nowait(call.wire)

    async with serving(handler) as server, upgraded(server):
        await (await wires.get()).gone()


async def test_application_is_asked_before_the_shutdown() -> None:
    """When the server is told to stop, its clients hear a proper goodbye first."""
    connected: list[Call] = []

    async def handler(call: Call) -> None:
        await call.wire.accept(None)
        connected.append(call)
        await call.wire.gone()

    async def say_goodbye() -> None:
        for call in connected:
            call.text("going away")
            call.wire.close(1012, "")

    hypercorn_tuning.before_shutdown(say_goodbye)
    async with serving(handler) as server, server.connect() as client:
        await asyncio.gather(server.stop(), client.wait_closed())
        assert await client.recv() == "going away"
        assert client.close_code == 1012


@pytest.mark.parametrize("size", [16_386, 40_000])
async def test_headers_are_limited(size: int) -> None:
    """Headers over 16 KiB are refused, also when they come at once and the request is whole."""

    async def handler(_call: Call) -> None:
        raise AssertionError("it is no valid request")

    async with serving(handler) as server:
        head = REQUEST.removesuffix(b"\r\n") + b"X-Padding: "
        request = head + b"x" * (size - len(head) - 4) + b"\r\n\r\n"
        assert (await server.answer(request)).startswith(b"HTTP/1.1 431")


async def test_http_2_is_not_spoken() -> None:
    """Whoever asks to change to HTTP/2 is answered in HTTP/1.1."""

    async def handler(call: Call) -> None:
        await call.send({"type": "http.response.start", "status": 204, "headers": []})
        await call.send({"type": "http.response.body", "body": b""})

    request = (
        b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: h2c\r\n"
        b"Connection: Upgrade, HTTP2-Settings, close\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"
    )
    async with serving(handler) as server:
        assert (await server.answer(request)).startswith(b"HTTP/1.1 204")


async def test_stuck_http_client_does_not_hold_up_the_shutdown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client that stops reading in mid-response cannot keep the process from ending."""
    monkeypatch.setattr(hypercorn_tuning, "_LAST_RESPONSES_S", 0.01)
    began = asyncio.Event()

    async def handler(call: Call) -> None:
        await call.send({"type": "http.response.start", "status": 200, "headers": []})
        began.set()
        await call.send({"type": "http.response.body", "body": bytes(HUGE)})

    config = Config()
    config.graceful_timeout = 0.1
    async with serving(handler, config) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1)
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await began.wait()
        await server.stop()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@pytest.mark.parametrize(
    ("headers", "offered"),
    [
        (["Sec-WebSocket-Protocol: a, b"], ["a", "b"]),
        (["Sec-WebSocket-Protocol: a", "Sec-WebSocket-Protocol: b"], ["a", "b"]),
        (["Sec-WebSocket-Protocol: é"], ["?"]),
        (["Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=x"], []),
        (['Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits="15"'], []),
        (["Sec-WebSocket-Extensions: é"], []),
        (["Sec-WebSocket-Extensions: x-unknown; a=b, permessage-deflate"], []),
    ],
)
async def test_odd_handshake(headers: list[str], offered: list[str]) -> None:
    """A handshake in an unusual spelling is answered, and nothing of it is lost."""
    seen: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()

    async def handler(call: Call) -> None:
        seen.set_result(call.scope["subprotocols"])
        await call.wire.accept(None)

    async with serving(handler) as server, upgraded(server, *headers):
        assert await seen == offered


async def test_worker_that_gets_sigterm_stops_as_any_other() -> None:
    """A worker that is told by a signal, before its parent's word comes, stops in good order."""
    context = TunedWorkerContext(None)
    context._on_sigterm()
    async with asyncio.timeout(GIVE_UP_AFTER_S):
        await context.terminate.wait()
    assert not context.terminated.is_set()


async def test_everybody_is_asked_before_the_shutdown() -> None:
    """All that want to be asked first are asked, at the same time."""
    asked: list[str] = []
    both = asyncio.Barrier(2)
    for name in ("first", "second"):

        async def callback(name: str = name) -> None:
            await both.wait()
            asked.append(name)

        hypercorn_tuning.before_shutdown(callback)
    context = TunedWorkerContext(None)
    async with asyncio.timeout(GIVE_UP_AFTER_S):
        await context.terminated.set()
    assert sorted(asked) == ["first", "second"]
    assert context.terminated.is_set()


@pytest.fixture
def server_loggers() -> Any:
    """Hypercorn's loggers are the process's: they are put back."""
    loggers = [logging.getLogger(f"hypercorn.{name}") for name in ("access", "error")]
    before = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
    yield
    for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.mark.usefixtures("server_loggers")
def test_server_lines_come_once() -> None:
    """The server's own lines go the way of the service's, in one format, and once."""
    config = Config()
    error_logger = config.log.error_logger
    assert error_logger is not None
    assert error_logger.handlers == []
    assert error_logger.propagate


@pytest.mark.usefixtures("server_loggers")
def test_log_files_that_were_asked_for_stay(tmp_path: Path) -> None:
    """Who asks Hypercorn for a log file gets one."""
    config = Config()
    config.errorlog = str(tmp_path / "error.log")
    config.accesslog = str(tmp_path / "access.log")
    error_logger, access_logger = config.log.error_logger, config.log.access_logger
    assert error_logger is not None
    assert access_logger is not None
    assert not access_logger.propagate
    for logger in (error_logger, access_logger):
        logger.error("a line")
        for handler in logger.handlers:
            handler.close()
    assert (tmp_path / "error.log").read_text().rstrip().endswith("a line")
    assert (tmp_path / "access.log").read_text().rstrip().endswith("a line")
