"""A real Hypercorn with the tuning, and clients that misbehave."""

import asyncio
import contextlib
import logging
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import hypercorn.asyncio
import hypercorn.asyncio.run
import hypercorn.protocol.h11
import pytest
import websockets
from hypercorn.config import Config
from websockets.asyncio.client import ClientConnection

from services.websocket_service import hypercorn_tuning
from services.websocket_service.hypercorn_tuning import (
    PEER_EXTENSION,
    Peer,
    TunedWorkerContext,
    TunedWSStream,
)
from services.websocket_service.tests.fakes import GIVE_UP_AFTER_S

MAX_MESSAGE_BYTES = 1000
# More than the buffers of both ends of a socket hold.
HUGE = 64 * 1024 * 1024

Message = dict[str, Any]


@dataclass
class Call:
    """One call of the application, as ASGI has it."""

    scope: Message
    receive: Callable[[], Awaitable[Message]]
    send: Callable[[Message], Awaitable[None]]

    @property
    def peer(self) -> Peer:
        peer = self.scope["extensions"][PEER_EXTENSION]
        assert isinstance(peer, Peer)
        return peer

    async def accept(self) -> None:
        assert (await self.receive())["type"] == "websocket.connect"
        await self.send({"type": "websocket.accept"})

    async def text(self, text: str) -> None:
        await self.send({"type": "websocket.send", "text": text})

    async def close(self, code: int) -> None:
        await self.send({"type": "websocket.close", "code": code, "reason": "because"})

    async def until_disconnected(self) -> list[Message]:
        """What came before the end of the connection."""
        messages = []
        while (message := await self.receive())["type"] != "websocket.disconnect":
            messages.append(message)
        return messages


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
        (Config, "logger_class"),
        (TunedWSStream, "max_message_bytes"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    monkeypatch.setattr(hypercorn_tuning, "_before_shutdown", [])
    hypercorn_tuning.install(max_message_bytes=MAX_MESSAGE_BYTES)


def frame(first_byte: int, payload: bytes, *, masked: bool = True) -> bytes:
    """A frame of a client; the mask is all zeros."""
    length = len(payload)
    mask_bit = 0x80 if masked else 0
    head = (
        struct.pack("!BB", first_byte, mask_bit | length)
        if length < 126
        else struct.pack("!BBH", first_byte, mask_bit | 126, length)
    )
    return head + (bytes(4) if masked else b"") + payload


@contextlib.asynccontextmanager
async def upgraded(
    server: "Server", *headers: str
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A bare socket after its upgrade; nothing is read from it but what the test reads."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
    lines = [
        "GET / HTTP/1.1",
        "Host: localhost",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        *headers,
    ]
    writer.write("\r\n".join([*lines, "", ""]).encode("latin1"))
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def turn_until(condition: Callable[[], bool]) -> None:
    """Turn the event loop, which is what sockets are read and written in."""
    while not condition():  # noqa: ASYNC110 - nobody sets an event for it
        await asyncio.sleep(0)


def write_raw(client: ClientConnection, data: bytes) -> None:
    """Send bytes that no library would."""
    client.transport.write(data)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(0x81, b"\xff\xfe"), 1007),
        (frame(0x81, b"\xed\xa0\x80"), 1007),
        (frame(0x01, b"\xc3") + frame(0x80, b"x"), 1007),
        (frame(0x83, b"reserved opcode"), 1002),
        (frame(0xC1, b"reserved bit"), 1002),
        (frame(0x81, b"not masked", masked=False), 1002),
        (frame(0x80, b"nothing to continue"), 1002),
        (frame(0x89, b"x" * 126), 1002),
        (frame(0x88, b"\x03"), 1002),
        (frame(0x82, b"x" * (MAX_MESSAGE_BYTES + 1)), 1009),
        (frame(0x81, b"x" * (MAX_MESSAGE_BYTES + 1)), 1009),
        (frame(0x01, b"x" * 600) + frame(0x00, b"x" * 600), 1009),
    ],
    ids=[
        "invalid utf-8",
        "surrogate",
        "invalid utf-8 in parts",
        "opcode",
        "bit",
        "mask",
        "continuation",
        "long ping",
        "short close",
        "big binary",
        "big text",
        "big parts",
    ],
)
async def test_violation(data: bytes, code: int) -> None:
    """The application decides how a violation ends, and the client sees the code and why."""
    seen = asyncio.Event()

    async def handler(call: Call) -> None:
        await call.accept()
        await call.close(await call.peer.violated)
        await seen.wait()

    async with serving(handler) as server, upgraded(server) as (reader, writer):
        writer.write(data)
        opcode, length = await reader.readexactly(2)
        payload = await reader.readexactly(length)
        seen.set()
    assert opcode == 0x88
    assert struct.unpack("!H", payload[:2]) == (code,)
    assert payload[2:] == b"because"


async def test_nothing_after_a_violation_is_delivered() -> None:
    """What a client sends after an invalid frame is not taken for its word."""
    heard: list[Message] = []

    async def handler(call: Call) -> None:
        await call.accept()
        await call.peer.violated
        await call.text("go on")
        heard.extend(await call.until_disconnected())

    async with serving(handler) as server, server.connect() as client:
        write_raw(client, frame(0x81, b"x" * (MAX_MESSAGE_BYTES + 1)))
        assert await client.recv() == "go on"
        await client.send("more")
        await client.close()
    assert heard == []


async def test_nothing_after_a_violation_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that goes on after an oversize message fills no memory with it."""
    streams: list[TunedWSStream] = []

    class KeptStream(TunedWSStream):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            streams.append(self)

    monkeypatch.setattr(hypercorn.protocol.h11, "WSStream", KeptStream)
    part = frame(0x00, b"x" * MAX_MESSAGE_BYTES)

    async def handler(call: Call) -> None:
        await call.accept()
        await call.until_disconnected()

    async with serving(handler) as server, server.connect() as client:
        write_raw(client, frame(0x01, b"x" * MAX_MESSAGE_BYTES) + part * 50)
        await client.close()
    assert [stream.buffer.length for stream in streams] == [2 * MAX_MESSAGE_BYTES]


async def test_messages_arrive_whole() -> None:
    """Texts and binary messages, in one frame or in many, reach the application as they were."""
    heard: list[Message] = []

    async def handler(call: Call) -> None:
        await call.accept()
        heard.extend(await call.until_disconnected())

    biggest = "x" * MAX_MESSAGE_BYTES
    async with serving(handler) as server, server.connect() as client:
        await client.send("Räksmörgås 🦐")
        await client.send(["in ", "three ", "parts"])
        await client.send(b"")
        await client.send(biggest)
        await client.ping()
        await client.send(["a", "b"])
    assert [message["text"] for message in heard] == [
        "Räksmörgås 🦐",
        "in three parts",
        None,
        biggest,
        "ab",
    ]
    assert heard[2]["bytes"] == b""


async def test_compression_is_declined() -> None:
    """A client that offers compression, as every browser does, is served without."""

    async def handler(call: Call) -> None:
        await call.accept()
        call.peer.ping()
        await call.text("plain")
        await call.until_disconnected()

    async with serving(handler) as server, server.connect(compression="deflate") as client:
        assert await client.recv() == "plain"
        assert client.protocol.extensions == []


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(0x88, struct.pack("!H", 4321) + b"bye"), 4321),
        (frame(0x88, b""), 1005),
        (None, None),
    ],
    ids=["with a code", "without", "no close frame"],
)
async def test_close_code_of_the_client(data: bytes | None, code: int | None) -> None:
    """The application knows how a client closed, and whether it did at all."""
    seen: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()

    async def handler(call: Call) -> None:
        await call.accept()
        await call.until_disconnected()
        seen.set_result(call.peer.close_code)

    async with serving(handler) as server, server.connect() as client:
        if data is None:
            client.transport.abort()
        else:
            write_raw(client, data)
        assert await seen == code


async def test_client_that_answers_the_close_frame() -> None:
    """After the server's close frame the application learns that the client has answered."""
    seen: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()

    async def handler(call: Call) -> None:
        await call.accept()
        await call.close(4000)
        await call.until_disconnected()
        seen.set_result(call.peer.close_code)

    async with serving(handler) as server, server.connect() as client:
        await client.wait_closed()
        assert client.close_code == 4000
        assert await seen == 4000


async def test_pong_is_heard() -> None:
    """A client that does nothing but answer pings is heard of."""
    result: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def handler(call: Call) -> None:
        await call.accept()
        before = call.peer.last_heard
        call.peer.ping()
        await turn_until(lambda: call.peer.last_heard != before)
        result.set_result(call.peer.last_heard > before)

    async with serving(handler) as server, server.connect() as client:
        assert await result
        await client.wait_closed()


async def test_server_sends_no_pings_of_its_own() -> None:
    """Pings are the service's affair: those that nobody checks the answers of are not sent."""
    config = Config()
    config.websocket_ping_interval = 0.001
    seen = asyncio.Event()

    async def handler(call: Call) -> None:
        await call.accept()
        for _ in range(5):
            await asyncio.sleep(0)  # Hypercorn's first ping would be sent in the next turn
        await call.text("first")
        await seen.wait()

    async with serving(handler, config) as server, upgraded(server) as (reader, _):
        assert await reader.readexactly(7) == b"\x81\x05first"
        seen.set()


async def test_abort_releases_a_client_that_reads_nothing() -> None:
    """A client that has stopped reading cannot hold on to its connection."""
    released: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()

    async def handler(call: Call) -> None:
        await call.accept()
        writing = asyncio.ensure_future(call.text("x" * HUGE))
        await turn_until(lambda: call.peer._writer.transport.get_write_buffer_size() > 0)
        assert not writing.done()
        call.peer.abort()
        await call.until_disconnected()
        await writing
        call.peer.ping()  # into the void
        released.set_result(call.peer.close_code)

    async with serving(handler) as server, upgraded(server):
        assert await released is None


async def test_application_is_asked_before_the_shutdown() -> None:
    """When the server is told to stop, its clients hear a proper goodbye first."""
    connected: list[Call] = []

    async def handler(call: Call) -> None:
        await call.accept()
        connected.append(call)
        await call.until_disconnected()

    async def say_goodbye() -> None:
        for call in connected:
            await call.text("going away")
            await call.close(1012)

    hypercorn_tuning.before_shutdown(say_goodbye)
    async with serving(handler) as server, server.connect() as client:
        await asyncio.gather(server.stop(), client.wait_closed())
        assert await client.recv() == "going away"
        assert client.close_code == 1012


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
        await call.accept()
        seen.set_result(call.scope["subprotocols"])

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
