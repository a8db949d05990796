"""A wire on a real connection, and clients of all manners at the other end."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Opcode

from services.websocket_service.outbound import OutboundFrame
from services.websocket_service.tests.fakes import GIVE_UP_AFTER_S
from services.websocket_service.tests.wire.client_frames import (
    MAX_MESSAGE_BYTES,
    VIOLATIONS,
    close,
    frame,
)
from services.websocket_service.tests.wire.listener import Listener
from services.websocket_service.wire import (
    HIGH_WATER_BYTES,
    MAX_FRAMES_PER_TURN,
    MAX_UNHEARD_FRAMES,
    WebSocketWire,
)

# Small, so that a client that does not read is soon felt.
BUFFER_BYTES = 8192
PONG_BYTES = 127


class Client:
    """The other end: it reads only when told to."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._loop = asyncio.get_running_loop()
        self._received = bytearray()

    async def send(self, *data: bytes) -> None:
        await self._loop.sock_sendall(self._socket, b"".join(data))

    async def receive(self) -> tuple[int, bytes]:
        """First byte and payload of the next frame. Raises EOFError or ConnectionError."""
        first, length = await self._exactly(2)
        if length > 125:
            length = int.from_bytes(await self._exactly(2 if length == 126 else 8))
        return first, await self._exactly(length)

    async def ended(self) -> None:
        """Read up to the end, in good order or not."""
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                await self.receive()

    def hang_up(self) -> None:
        """Say no more; go on listening."""
        self._socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    async def _exactly(self, count: int) -> bytes:
        while len(self._received) < count:
            data = await self._loop.sock_recv(self._socket, 65_536)
            if not data:
                raise EOFError
            self._received += data
        taken = bytes(self._received[:count])
        del self._received[:count]
        return taken


class Predecessor(asyncio.Protocol):
    """Hands its transport over at once, as if it had read the upgrade."""

    def __init__(self, wires: asyncio.Queue[tuple[WebSocketWire, asyncio.Transport]]) -> None:
        self._wires = wires

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        made: asyncio.Transport = transport  # type: ignore[assignment] # of TCP
        wire = WebSocketWire(made, refuse, max_message_bytes=MAX_MESSAGE_BYTES)
        wire.take_over()
        self._wires.put_nowait((wire, made))


async def refuse(_subprotocol: str | None) -> None:
    raise AssertionError("it is answered already")


class Server:
    """Where wires begin."""

    def __init__(self, listening: socket.socket) -> None:
        self._port: int = listening.getsockname()[1]
        self._wires: asyncio.Queue[tuple[WebSocketWire, asyncio.Transport]] = asyncio.Queue()
        self._opened: list[asyncio.Transport] = []

    def protocol(self) -> Predecessor:
        return Predecessor(self._wires)

    @contextlib.asynccontextmanager
    async def connection(
        self,
    ) -> AsyncIterator[tuple[Client, WebSocketWire, asyncio.Transport]]:
        with socket.socket() as connection:
            connection.setblocking(False)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(connection, ("127.0.0.1", self._port))
            wire, transport = await self._wires.get()
            try:
                yield Client(connection), wire, transport
            finally:
                wire.abort()
                await wire.gone()


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[Server]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        server = Server(listening)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(GIVE_UP_AFTER_S):
            async with await loop.create_server(server.protocol, sock=listening.dup()):
                yield server


@contextlib.asynccontextmanager
async def connected(
    listener: Listener | None = None,
) -> AsyncIterator[tuple[Client, WebSocketWire, asyncio.Transport]]:
    async with serving() as server, server.connection() as connection:
        if listener is not None:
            connection[1].listen(listener)
        yield connection


def outbound(text: bytes) -> OutboundFrame:
    return OutboundFrame(text, made_at=0.0)


# In


@settings(max_examples=20)
@given(
    texts=st.lists(st.lists(st.text(max_size=60), min_size=1, max_size=5), max_size=5),
    cuts=st.lists(st.integers(1, 400), max_size=10),
)
async def test_texts_arrive_whole(texts: list[list[str]], cuts: list[int]) -> None:
    """Texts reach the application as they were, whatever was made of them on the way."""
    listener = Listener()
    data = b""
    for parts in texts:
        for n, part in enumerate(parts):
            opcode = Opcode.CONT if n else Opcode.TEXT
            data += frame(opcode, part.encode(), fin=n == len(parts) - 1)
            data += frame(Opcode.PING)
    async with connected(listener) as (client, wire, _):
        for cut in cuts:
            await client.send(data[:cut])
            data = data[cut:]
        await client.send(data, close(1000))
        assert await listener.left() == 1000
        wire.finish()
        await client.ended()
    assert listener.messages == ["".join(parts) for parts in texts]


async def test_character_may_be_split() -> None:
    """A character may begin in one fragment and end in the next."""
    listener = Listener()
    async with connected(listener) as (client, _, _):
        await client.send(frame(Opcode.TEXT, b"gr\xc3", fin=False))
        await client.send(frame(Opcode.CONT, fin=False), frame(Opcode.CONT, b"\xbc\xc3\x9fe"))
        await listener.until(lambda: bool(listener.messages))
    assert listener.messages == ["grüße"]


@pytest.mark.parametrize("fin", [True, False])
async def test_binary_message_is_reported_at_once(fin: bool) -> None:
    """A binary message is told of at its first frame, and its fragments are no text."""
    listener = Listener()
    async with connected(listener) as (client, _, _):
        rest = [] if fin else [frame(Opcode.CONT, b"\xff", fin=True)]
        await client.send(frame(Opcode.BINARY, b"\xff", fin=fin), *rest, close(1000))
        assert await listener.left() == 1000
    assert listener.messages == [b"\xff"]


@pytest.mark.parametrize(("data", "code"), VIOLATIONS.values(), ids=VIOLATIONS)
async def test_violation(data: bytes, code: int) -> None:
    """An invalid frame is judged, nothing after it counts, and the client hears of it."""
    listener = Listener()
    async with connected(listener) as (client, wire, _):
        await client.send(data, frame(Opcode.TEXT, b"more") * 100)
        assert await listener.violated() == code
        wire.close(code, "why")
        while (received := await client.receive())[0] != 0x88:
            pass
        assert received[1] == struct.pack("!H", code) + b"why"
        with pytest.raises(EOFError):
            await client.receive()
        client.hang_up()
        assert await listener.left() is None
    assert listener.messages == []
    assert listener.violations == [code]


FLOODS = {
    "pings": frame(Opcode.PING),
    "pongs": frame(Opcode.PONG, b"x" * 125),
    "empty texts": frame(Opcode.TEXT),
    "texts": frame(Opcode.TEXT, b"x"),
}
FRAGMENTS = {"empty fragments": b"", "one-byte fragments": b"x"}


@pytest.mark.parametrize("kind", [*FLOODS, *FRAGMENTS])
async def test_each_frame_counts(kind: str) -> None:
    """Frames of whatever kind count, and those beyond the limit are not heard."""
    listener = Listener(max_frames=500)
    async with connected(listener) as (client, wire, _):
        if kind in FLOODS:
            flood = FLOODS[kind] * 1000
        else:
            flood = (
                frame(Opcode.TEXT, fin=False) + frame(Opcode.CONT, FRAGMENTS[kind], fin=False) * 999
            )
        await client.send(flood)
        await listener.until(lambda: listener.frames == 501)
        wire.close(4009, "")
        while (received := await client.receive())[0] != 0x88:
            pass
        await client.send(close(4009))
        await wire.gone()
    assert received[1] == struct.pack("!H", 4009)
    assert listener.frames == 501
    assert len(listener.messages) <= 500


@pytest.mark.parametrize("kind", FLOODS)
async def test_flood_leaves_the_others_their_turn(kind: str) -> None:
    """Between a few frames of a flood everybody else has a turn."""
    listener = Listener()

    async def take_turns() -> None:
        while listener.frames < 5000:
            await asyncio.sleep(0)
            listener.turn += 1

    async with connected(listener) as (client, _, _):
        await asyncio.gather(take_turns(), client.send(FLOODS[kind] * 5000))
    # A turn may read more than once, as long as that was not too much.
    assert max(listener.frames_by_turn.values()) < 10 * MAX_FRAMES_PER_TURN


async def test_flood_that_nobody_listens_to_is_not_parsed_for_ever() -> None:
    """A client that was told to go and sends on is found again only by its hanging up."""
    listener = Listener()
    async with connected() as (client, wire, _):
        wire.close(1008, "")
        await client.send(FLOODS["texts"] * (MAX_UNHEARD_FRAMES + 1), close(1000))
        client.hang_up()
        await wire.gone()
        wire.listen(listener)
    assert listener.close_codes == [None]


async def test_answer_to_the_close_frame_is_found_behind_other_frames() -> None:
    """A client that was busy sending when it was told to go leaves in good order."""
    listener = Listener()
    async with connected() as (client, wire, _):
        wire.close(1008, "")
        await client.send(FLOODS["texts"] * (MAX_UNHEARD_FRAMES - 1), close(1008))
        await wire.gone()
        wire.listen(listener)
    assert listener.close_codes == [1008]


async def test_pings_of_a_client_that_does_not_read() -> None:
    """Who asks and asks, and reads no answer, fills no memory; what it asked last is answered."""
    listener = Listener()
    count = 30_000
    async with connected(listener) as (client, wire, transport):
        pings = [frame(Opcode.PING, b"%0125d" % n) for n in range(count)]
        for start in range(0, count, 1000):
            await client.send(*pings[start : start + 1000])
            assert transport.get_write_buffer_size() <= (
                HIGH_WATER_BYTES + MAX_FRAMES_PER_TURN * PONG_BYTES
            )
        await listener.until(lambda: listener.frames == count)
        assert not wire.writable
        assert listener.pauses == 1
        payload, answers = b"", 0
        while payload != b"%0125d" % (count - 1):
            opcode, payload = await client.receive()
            assert opcode == 0x8A
            answers += 1
    assert answers < count


async def test_pings_are_answered() -> None:
    """A ping gets its own payload back, in order, whatever else goes on."""
    async with connected(Listener()) as (client, wire, _):
        await client.send(frame(Opcode.PING, b"a"), frame(Opcode.PING), frame(Opcode.TEXT, b"x"))
        wire.ping()
        received = [await client.receive() for _ in range(3)]
    assert (0x89, b"") in received
    received.remove((0x89, b""))
    assert received == [(0x8A, b"a"), (0x8A, b"")]


async def test_every_byte_is_a_sign_of_life() -> None:
    """A client that sends half a frame has been heard of."""
    listener = Listener()
    async with connected(listener) as (client, wire, _):
        before = wire.last_heard_at
        while asyncio.get_running_loop().time() == before:  # noqa: ASYNC110 - nor for this
            await asyncio.sleep(0)
        await client.send(frame(Opcode.PONG)[:1])
        while wire.last_heard_at == before:  # noqa: ASYNC110 - nobody sets an event for it
            await asyncio.sleep(0)
    assert listener.frames == 0


# Out


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, 200_000])
async def test_texts_of_every_size(size: int) -> None:
    """A text arrives as it was, in a frame with the shortest length."""
    async with connected() as (client, wire, _):
        wire.write([outbound(b"x" * size), outbound(b"end")])
        assert await client.receive() == (0x81, b"x" * size)
        assert await client.receive() == (0x81, b"end")


async def test_client_that_does_not_keep_up() -> None:
    """The application hears when a client stops taking, and when it has taken."""
    listener = Listener()
    text = b"x" * 10_000
    async with connected(listener) as (client, wire, transport):
        written = 0
        while wire.writable:
            wire.write([outbound(text)])
            written += 1
        assert listener.pauses == 1
        assert transport.get_write_buffer_size() <= HIGH_WATER_BYTES + len(text) + 4
        for _ in range(written):
            assert await client.receive() == (0x81, text)
        await listener.until(lambda: wire.writable)
    assert (listener.pauses, listener.resumptions) == (1, 1)


# Ends


@pytest.mark.parametrize(
    ("data", "code"),
    [(close(1000, b"bye"), 1000), (close(4321), 4321), (frame(Opcode.CLOSE), 1005)],
    ids=["with a reason", "application's code", "without a code"],
)
async def test_client_leaves(data: bytes, code: int) -> None:
    """A client's close frame is answered with its own words, and ends the connection."""
    listener = Listener()
    async with connected(listener) as (client, wire, _):
        await client.send(frame(Opcode.TEXT, b"x", fin=False), data, frame(Opcode.TEXT, b"late"))
        assert await listener.left() == code
        wire.close(1011, "not any more")
        wire.finish()
        first, payload = await client.receive()
        assert (first, payload) == (0x88, data[6:] if data[4:5] else b"")
        with pytest.raises((EOFError, ConnectionError)):
            await client.receive()
    assert listener.messages == []


async def test_client_is_sent_away() -> None:
    """After our close frame the client's own is waited for, and what it still sends is heard."""
    listener = Listener()
    async with connected(listener) as (client, wire, _):
        wire.close(4008, "too slow")
        wire.close(1011, "twice")
        assert await client.receive() == (0x88, struct.pack("!H", 4008) + b"too slow")
        await client.send(frame(Opcode.PING), close(4008))
        assert await listener.left() == 4008
        wire.finish()
        with pytest.raises((EOFError, ConnectionError)):
            await client.receive()


@pytest.mark.parametrize("how", ["eof", "eof within a frame", "reset"])
async def test_client_is_lost(how: str) -> None:
    """A client that ends without a close frame is noticed, and writing to it does no harm."""
    listener = Listener()
    async with connected(listener) as (client, wire, _):
        if how == "reset":
            client.reset()
        else:
            await client.send(frame(Opcode.TEXT, b"x")[:3] if "within" in how else b"")
            client.hang_up()
        assert await listener.left() is None
        wire.write([outbound(b"x" * 100_000)])
        wire.ping()
        wire.close(1000, "")
        await wire.gone()
    assert listener.close_codes == [None]
    assert listener.violations == []


async def test_client_leaves_while_we_write() -> None:
    """A client that closes with much on its way to it gets that, and then our answer."""
    listener = Listener()
    async with connected(listener) as (client, wire, _):
        texts = [b"%d" % n * 1000 for n in range(100)]
        wire.write([outbound(text) for text in texts])
        await client.send(close(1001))
        assert await listener.left() == 1001
        wire.finish()
        assert [await client.receive() for _ in texts] == [(0x81, text) for text in texts]
        assert await client.receive() == (0x88, struct.pack("!H", 1001))


async def test_abort_drops_what_is_unsent() -> None:
    """A client that reads nothing can't hold on to its connection."""
    listener = Listener()
    async with connected(listener) as (client, wire, transport):
        wire.write([outbound(b"x" * 10_000_000)])
        assert transport.get_write_buffer_size() > 0
        wire.abort()
        assert await listener.left() is None
        assert transport.get_write_buffer_size() == 0
        await client.ended()


async def test_who_listens_late_hears_of_the_end() -> None:
    """A connection that is lost before anybody listens is reported to who does."""
    listener = Listener()
    async with connected() as (client, wire, _):
        await client.send(close(1001))
        await wire.gone()
        wire.listen(listener)
    assert listener.close_codes == [1001]
