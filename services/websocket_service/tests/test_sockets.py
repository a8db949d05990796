"""What a session expects of a socket: of a transport, of ASGI, and of the twin in these tests."""

import asyncio
import socket as sockets
from collections.abc import AsyncIterator, Callable
from typing import Protocol

import pytest
from websockets.frames import Close, Frame, Opcode
from websockets.protocol import CLIENT, OPEN
from websockets.protocol import Protocol as FrameProtocol

from services.websocket_service.asgi_socket import AsgiSocket
from services.websocket_service.outbound import OutboundFrame
from services.websocket_service.protocols import SocketProtocol
from services.websocket_service.tests.fakes import (
    GIVE_UP_AFTER_S,
    MAX_MESSAGE_BYTES,
    MemoryClient,
)
from services.websocket_service.tests.test_asgi_socket import AsgiServer
from services.websocket_service.wire import WebSocketWire

LARGE = "x" * 100_000
# Whatever lies between the two ends holds less.
MOST_LARGE_ONES = 100


class FarEnd(Protocol):
    """A client, and the server's socket for it."""

    @property
    def socket(self) -> SocketProtocol: ...

    def heard(self) -> list[str | int]:
        """The texts that have come so far, and the code of a close frame."""
        ...

    def say(self, message: str | bytes) -> None: ...

    def leave(self, close_code: int | None) -> None: ...

    def stop_reading(self) -> None: ...

    def read(self) -> None: ...


class MemoryEnd:
    """The twin."""

    def __init__(self) -> None:
        self._client = MemoryClient()
        self._heard: list[str | int] = []
        self.socket: SocketProtocol = self._client.socket
        self.say = self._client.say
        self.leave = self._client.leave
        self.stop_reading = self._client.stop_reading
        self.read = self._client.read

    def heard(self) -> list[str | int]:
        while not self._client.heard.empty():
            heard = self._client.heard.get_nowait()
            self._heard.append(heard if isinstance(heard, str) else heard.code)
        return self._heard


class AsgiEnd:
    """A client of an ASGI server."""

    def __init__(self, server: AsgiServer, socket: SocketProtocol) -> None:
        self._server = server
        self.socket = socket
        self.say = server.say
        self.stop_reading = server.reads.clear
        self.read = server.reads.set

    def leave(self, close_code: int | None) -> None:
        self._server.disconnect(1006 if close_code is None else close_code)

    def heard(self) -> list[str | int]:
        return [
            message["text"] if message["type"] == "websocket.send" else message["code"]
            for message in self._server.sent
            if message["type"] != "websocket.accept"
        ]


class WireEnd(asyncio.Protocol):
    """The other end of a pair of sockets."""

    socket: SocketProtocol

    def __init__(self) -> None:
        self._parser = FrameProtocol(CLIENT, state=OPEN, max_size=None)
        self._transport = asyncio.Transport()
        self._heard: list[str | int] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.receive_data(data)
        for event in self._parser.events_received():
            assert isinstance(event, Frame)
            if event.opcode is Opcode.TEXT:
                self._heard.append(bytes(event.data).decode())
            elif event.opcode is Opcode.CLOSE:
                self._heard.append(Close.parse(event.data).code)
        self._send()

    def _send(self) -> None:
        for data in self._parser.data_to_send():
            if data:
                self._transport.write(data)

    def heard(self) -> list[str | int]:
        return self._heard

    def say(self, message: str | bytes) -> None:
        if isinstance(message, str):
            self._parser.send_text(message.encode())
        else:
            self._parser.send_binary(message)
        self._send()

    def leave(self, close_code: int | None) -> None:
        if close_code is None:
            self.hang_up()
        else:
            self._parser.send_close(close_code)
            self._send()

    def stop_reading(self) -> None:
        self._transport.pause_reading()

    def read(self) -> None:
        self._transport.resume_reading()

    def hang_up(self) -> None:
        self._transport.abort()


class UpgradingServer(asyncio.Protocol):
    """Has the transport until the upgrade is answered."""

    wire: WebSocketWire

    def connection_lost(self, exc: Exception | None) -> None:
        assert exc is None
        self.wire.lost()


async def memory_end() -> AsyncIterator[FarEnd]:
    yield MemoryEnd()


async def asgi_end() -> AsyncIterator[FarEnd]:
    server = AsgiServer()
    async with AsgiSocket(
        server.receive, server.send, max_message_bytes=MAX_MESSAGE_BYTES
    ) as socket:
        yield AsgiEnd(server, socket)


async def wire_end() -> AsyncIterator[FarEnd]:
    loop = asyncio.get_running_loop()
    ours, theirs = sockets.socketpair()
    _, far = await loop.create_connection(WireEnd, sock=theirs)
    transport, server = await loop.create_connection(UpgradingServer, sock=ours)

    async def answer(_subprotocol: str | None) -> None:
        wire.take_over()

    wire = WebSocketWire(transport, answer, max_message_bytes=MAX_MESSAGE_BYTES)
    far.socket = server.wire = wire
    yield far
    far.hang_up()
    wire.abort()
    await wire.gone()


@pytest.fixture(params=[memory_end, asgi_end, wire_end], ids=["memory", "asgi", "wire"])
async def far(request: pytest.FixtureRequest) -> AsyncIterator[FarEnd]:
    make: Callable[[], AsyncIterator[FarEnd]] = request.param
    async for end in make():
        yield end


class Ear:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.messages: list[str | bytes] = []
        self.frames = 0
        self.violations: list[int] = []
        self.pauses: list[bool] = []
        self.gone: list[int | None] = []

    def on_frame(self) -> bool:
        self.frames += 1
        return True

    def on_message(self, message: str | bytes) -> None:
        self.messages.append(message)

    def on_violation(self, code: int) -> None:
        self.violations.append(code)

    def on_paused(self) -> None:
        self.pauses.append(True)

    def on_writable(self) -> None:
        self.pauses.append(False)

    def on_gone(self, close_code: int | None) -> None:
        self.gone.append(close_code)


@pytest.fixture
async def ear(far: FarEnd) -> Ear:
    """What the server hears of an accepted socket."""
    ear = Ear()
    far.socket.listen(ear)
    await far.socket.accept(None)
    return ear


async def until(condition: Callable[[], bool]) -> None:
    """Let both ends, and the kernel between them, go on until it holds."""
    async with asyncio.timeout(GIVE_UP_AFTER_S):
        while True:
            if condition():
                return
            await asyncio.sleep(0)


def frames(*texts: str) -> list[OutboundFrame]:
    return [OutboundFrame(text.encode(), 0.0) for text in texts]


async def fill(far: FarEnd) -> int:
    """Write large frames until no more are taken; returns how many."""
    count = 0
    for count in range(1, MOST_LARGE_ONES):
        far.socket.write(frames(f"{count} {LARGE}"))
        if not far.socket.writable:
            break
    assert not far.socket.writable
    return count


async def test_in_order(far: FarEnd, ear: Ear) -> None:
    """What is written arrives in order, each frame whole, however it was put together."""
    texts = ["å", "", "x" * 125, "x" * 126, "x" * 65_535, "x" * 65_536, "b"]
    far.socket.write(frames(*texts))
    far.socket.write(frames("c"))
    await until(lambda: len(far.heard()) == len(texts) + 1)
    assert far.heard() == [*texts, "c"]
    assert ear.gone == []


async def test_pauses(far: FarEnd, ear: Ear) -> None:
    """A client that stops reading is noticed, and that it goes on; nothing is lost or doubled."""
    far.stop_reading()
    count = await fill(far)
    far.socket.write(frames("behind"))
    assert ear.pauses == [True]
    far.read()
    await until(lambda: len(ear.pauses) == 2)
    assert far.socket.writable
    await until(lambda: len(far.heard()) == count + 1)
    assert ear.pauses == [True, False]
    assert far.heard() == [*(f"{n} {LARGE}" for n in range(1, count + 1)), "behind"]


async def test_hears(far: FarEnd, ear: Ear) -> None:
    """What the client sends is heard whole and in order, and each message is counted."""
    messages: list[str | bytes] = ["a", "", "é" * 50, b"binary", "b"]
    for message in messages:
        far.say(message)
    await until(lambda: len(ear.messages) == len(messages))
    assert ear.messages == messages
    assert ear.frames == len(messages)


async def test_message_too_big(far: FarEnd, ear: Ear) -> None:
    """Of a message that is too big no more is heard than that."""
    far.say("a")
    far.say("x" * (MAX_MESSAGE_BYTES + 1))
    await until(lambda: bool(ear.violations))
    assert (ear.messages, ear.violations) == (["a"], [1009])


async def test_close(far: FarEnd, ear: Ear) -> None:
    """The close frame arrives behind all that was written; the client's answer ends it."""
    far.stop_reading()
    count = await fill(far)
    far.socket.close(1012, "{}")
    far.read()
    await until(lambda: bool(ear.gone))
    await far.socket.gone()
    assert far.heard()[count:] == [1012]
    assert ear.gone == [1012]


@pytest.mark.parametrize("close_code", [1000, 4999, None])
async def test_client_leaves(far: FarEnd, ear: Ear, close_code: int | None) -> None:
    """How a client left is told once, and to whoever listens later; then nothing more is said."""
    far.leave(close_code)
    await far.socket.gone()
    await until(lambda: bool(ear.gone))
    late = Ear()
    far.socket.listen(late)
    assert ear.gone == late.gone == [close_code]
    far.socket.write(frames("too late"))
    far.socket.close(1012, "{}")
    await far.socket.gone()
    assert "too late" not in far.heard()
    assert ear.gone == late.gone == [close_code]


async def test_client_leaves_while_it_does_not_read(far: FarEnd, ear: Ear) -> None:
    """A client that has stopped reading and then vanishes is noticed."""
    far.stop_reading()
    await fill(far)
    far.leave(None)
    await until(lambda: bool(ear.gone))
    assert ear.gone == [None]
    assert ear.pauses[0] is True


async def test_left_before_the_answer(far: FarEnd) -> None:
    """A listener that comes when the connection was dropped is told at once."""
    far.socket.abort()
    await far.socket.gone()
    ear = Ear()
    far.socket.listen(ear)
    assert ear.gone == [None]


async def test_abort(far: FarEnd, ear: Ear) -> None:
    """A connection that is dropped has gone, whatever was still unsent."""
    far.stop_reading()
    await fill(far)
    far.socket.abort()
    await far.socket.gone()
    await until(lambda: bool(ear.gone))
    assert ear.gone == [None]


async def test_nobody_listens(far: FarEnd, ear: Ear) -> None:
    """What comes when nobody listens any more is dropped, and the end is still noticed."""
    far.socket.listen(None)
    far.say("a")
    far.say(b"b")
    far.leave(1000)
    await far.socket.gone()
    assert (ear.messages, ear.frames, ear.gone) == ([], 0, [])
