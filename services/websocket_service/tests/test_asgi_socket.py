"""A socket under an ASGI server of which nothing is known but the specification."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest

from services.websocket_service.asgi_socket import AsgiSocket, Message
from services.websocket_service.credentials import Credentials
from services.websocket_service.frames import SUBPROTOCOL_V1
from services.websocket_service.outbound import OutboundFrame
from services.websocket_service.tests.fakes import (
    GIVE_UP_AFTER_S,
    MAX_MESSAGE_BYTES,
    Service,
    objects,
    turns,
)
from services.websocket_service.upgrade import Upgrade

BOTH = pytest.mark.parametrize("v1", [False, True], ids=["plain", "v1"])


class AsgiServer:
    """A server in memory with a client that may stop reading: then a `send` does not return."""

    def __init__(self) -> None:
        self._events: asyncio.Queue[Message | Exception] = asyncio.Queue()
        self._events.put_nowait({"type": "websocket.connect"})
        self.sent: list[Message] = []
        self.reads = asyncio.Event()
        self.reads.set()
        self.failure: Exception | None = None
        self.answers_close = True

    async def receive(self) -> Message:
        event = await self._events.get()
        if isinstance(event, Exception):
            raise event
        return event

    async def send(self, message: Message) -> None:
        if self.failure is not None:
            raise self.failure
        self.sent.append(message)
        await self.reads.wait()
        if message["type"] == "websocket.close" and self.answers_close:
            self.disconnect(message["code"])

    def say(self, message: str | bytes) -> None:
        """The client sends a message."""
        kind = "text" if isinstance(message, str) else "bytes"
        self._events.put_nowait({"type": "websocket.receive", kind: message})

    def disconnect(self, code: int) -> None:
        """The client has left: 1006 without a close frame."""
        self._events.put_nowait({"type": "websocket.disconnect", "code": code})

    def break_down(self, failure: Exception) -> None:
        """The server itself fails."""
        self._events.put_nowait(failure)

    @property
    def texts(self) -> list[str]:
        return [message["text"] for message in self.sent if message["type"] == "websocket.send"]


class Ear:
    """A listener that keeps what it hears; its last allowed frame may be set."""

    def __init__(self, socket: AsgiSocket, *, max_frames: int = 1000) -> None:
        self.heard: list[Any] = []
        self.frames_left = max_frames
        self._socket = socket

    def on_frame(self) -> bool:
        self.frames_left -= 1
        return self.frames_left >= 0

    def on_message(self, message: str | bytes) -> None:
        self.heard.append(message)

    def on_violation(self, code: int) -> None:
        self.heard.append(code)

    def on_paused(self) -> None:
        assert not self._socket.writable
        self.heard.append("paused")

    def on_writable(self) -> None:
        assert self._socket.writable
        self.heard.append("writable")

    def on_gone(self, close_code: int | None) -> None:
        self.heard.append(("gone", close_code))


@contextlib.asynccontextmanager
async def opened(server: AsgiServer) -> AsyncIterator[tuple[AsgiSocket, Ear]]:
    async with AsgiSocket(
        server.receive, server.send, max_message_bytes=MAX_MESSAGE_BYTES
    ) as socket:
        ear = Ear(socket)
        socket.listen(ear)
        await socket.accept(None)
        yield socket, ear


def frames(*texts: str) -> list[OutboundFrame]:
    return [OutboundFrame(text.encode(), 0.0) for text in texts]


@pytest.mark.parametrize("subprotocol", [None, "bearer.x"])
async def test_accepts_once(subprotocol: str | None) -> None:
    """The upgrade is answered once, with the subprotocol that was selected."""
    server = AsgiServer()
    async with AsgiSocket(server.receive, server.send, max_message_bytes=1) as socket:
        await socket.accept(subprotocol)
        await socket.accept("another")
    assert server.sent == [{"type": "websocket.accept", "subprotocol": subprotocol, "headers": []}]


async def test_frames_in_order() -> None:
    """What is written in one go, and what follows it, is sent as one message each, in order."""
    server = AsgiServer()
    async with opened(server) as (socket, ear):
        socket.write(frames("å", "", "b"))
        assert server.texts == []
        await turns()
        socket.write(frames("c"))
        socket.write(frames("d"))
        await turns()
        assert server.texts == ["å", "", "b", "c", "d"]
        assert ear.heard == ["paused", "writable"] * 2


async def test_not_writable_while_the_client_does_not_read() -> None:
    """The listener is told when the client takes nothing, and when it has taken everything."""
    server = AsgiServer()
    async with opened(server) as (socket, ear):
        server.reads.clear()
        socket.write(frames("a", "b"))
        await turns()
        assert server.texts == ["a"]
        assert ear.heard == ["paused"]
        server.reads.set()
        await turns()
        assert socket.writable
        assert server.texts == ["a", "b"]
        assert ear.heard == ["paused", "writable"]


async def test_close_comes_last_and_once() -> None:
    """The close frame follows what was written before; nothing follows it."""
    server = AsgiServer()
    async with opened(server) as (socket, ear):
        server.reads.clear()
        socket.write(frames("a"))
        socket.close(1012, "because")
        socket.write(frames("too late"))
        socket.close(1000, "again")
        server.reads.set()
        async with asyncio.timeout(GIVE_UP_AFTER_S):
            await socket.gone()
        assert server.sent[1:] == [
            {"type": "websocket.send", "text": "a"},
            {"type": "websocket.close", "code": 1012, "reason": "because"},
        ]
        assert ear.heard[-1] == ("gone", 1012)


async def test_messages_in_order() -> None:
    """What the client sends is heard in order, and each message counts as a frame."""
    server = AsgiServer()
    async with opened(server) as (socket, ear):
        server.say("a")
        server.say(b"binary")
        server.say("")
        server.say("x" * MAX_MESSAGE_BYTES)
        await turns()
        assert ear.heard == ["a", b"binary", "", "x" * MAX_MESSAGE_BYTES]
        assert ear.frames_left == 1000 - 4
        assert socket.writable


@pytest.mark.parametrize(
    "text", ["x" * (MAX_MESSAGE_BYTES + 1), "é" * (MAX_MESSAGE_BYTES // 2 + 1)]
)
async def test_message_too_big(text: str) -> None:
    """A message of more than the limit in bytes is a violation, and is not heard."""
    server = AsgiServer()
    async with opened(server) as (_, ear):
        server.say(text)
        await turns()
        assert ear.heard == [1009]


async def test_one_too_many() -> None:
    """After a frame too many no message is heard, but what happens to the socket still is."""
    server = AsgiServer()
    async with opened(server) as (socket, ear):
        ear.frames_left = 2
        for text in "abcd":
            server.say(text)
        await turns()
        socket.write(frames("x"))
        await turns()
        server.disconnect(1000)
        await turns()
        assert ear.heard == ["a", "b", "paused", "writable", ("gone", 1000)]


async def test_nobody_listens() -> None:
    """Without a listener messages are dropped, and the end is still noticed."""
    server = AsgiServer()
    async with opened(server) as (socket, ear):
        socket.listen(None)
        server.say("a")
        server.disconnect(1000)
        async with asyncio.timeout(GIVE_UP_AFTER_S):
            await socket.gone()
        assert ear.heard == []


@pytest.mark.parametrize(("code", "told"), [(1000, 1000), (1005, 1005), (4999, 4999), (1006, None)])
async def test_client_leaves(code: int, told: int | None) -> None:
    """How a client left is told, also to whoever begins to listen later; then nothing is sent."""
    server = AsgiServer()
    async with opened(server) as (socket, ear):
        server.disconnect(code)
        await turns()
        assert ear.heard == [("gone", told)]
        late = Ear(socket)
        socket.listen(late)
        assert late.heard == [("gone", told)]
        socket.write(frames("a"))
        socket.close(1012, "")
        socket.ping()
        await turns()
        assert len(server.sent) == 1


async def test_client_has_left_before_the_answer() -> None:
    """A client that has left by then gets no answer to its upgrade."""
    server = AsgiServer()
    async with AsgiSocket(server.receive, server.send, max_message_bytes=1) as socket:
        server.disconnect(1006)
        await socket.gone()
        await socket.accept(None)
    assert server.sent == []


async def test_send_that_fails_since_the_client_has_left() -> None:
    """A server that complains about a client that has left is about to say how it left."""
    server = AsgiServer()
    async with opened(server) as (socket, ear):
        server.failure = ConnectionResetError("gone")
        socket.write(frames("a"))
        await turns()
        assert ear.heard == ["paused"]
        server.disconnect(1001)
        await turns()
        assert ear.heard == ["paused", ("gone", 1001)]


async def test_answer_that_fails_since_the_client_has_left() -> None:
    """The same holds of the answer to the upgrade."""
    server = AsgiServer()
    server.failure = ConnectionResetError("gone")
    async with opened(server) as (socket, ear):
        server.disconnect(1006)
        async with asyncio.timeout(GIVE_UP_AFTER_S):
            await socket.gone()
        assert ear.heard == [("gone", None)]


@pytest.mark.parametrize("in_send", [True, False], ids=["send", "receive"])
async def test_server_that_fails(in_send: bool) -> None:
    """A defect of the server's ends the connection at once, and is not hidden."""
    server = AsgiServer()

    async def fail() -> None:
        async with opened(server) as (socket, ear):
            if in_send:
                server.failure = ZeroDivisionError()
                socket.write(frames("a"))
            else:
                server.break_down(ZeroDivisionError())
            async with asyncio.timeout(GIVE_UP_AFTER_S):
                await socket.gone()
            assert ear.heard[-1] == ("gone", None)

    with pytest.raises(ZeroDivisionError):
        await fail()


async def test_abort() -> None:
    """A connection that is dropped is gone at once, whatever the client does."""
    server = AsgiServer()
    async with opened(server) as (socket, ear):
        server.reads.clear()
        socket.write(frames("a", "b"))
        await turns()
        socket.abort()
        await socket.gone()
        assert ear.heard == ["paused", ("gone", None)]
    assert server.texts == ["a"]
    assert asyncio.all_tasks() == {asyncio.current_task()}


class TestSession:
    """The whole life of a connection over such a socket."""

    @contextlib.asynccontextmanager
    async def served(
        self, service: Service, server: AsgiServer, *, v1: bool
    ) -> AsyncIterator[asyncio.Task[None]]:
        upgrade = Upgrade(
            correlation_id=uuid4(),
            credentials=Credentials((service.issuer.token("a"),)),
            requested_subprotocols=[SUBPROTOCOL_V1] if v1 else [],
            origin=None,
        )
        async with AsgiSocket(
            server.receive, server.send, max_message_bytes=MAX_MESSAGE_BYTES
        ) as socket:
            session = service.serve(socket, upgrade)
            await turns()
            yield session
            async with asyncio.timeout(GIVE_UP_AFTER_S):
                await session
        service.assert_nothing_left()

    @BOTH
    async def test_from_the_welcome_to_the_goodbye(self, v1: bool) -> None:
        """Under any ASGI server a client gets its notifications in order, and a goodbye."""
        service, server = Service(), AsgiServer()
        async with self.served(service, server, v1=v1):
            published = [service.backplane.notify("a", n=n) for n in range(3)]
            await turns()
            server.say('{"type":"ping","nonce":1}')
            await turns()
            await service.hub.drain(timeout_s=20)
        assert server.sent[0]["subprotocol"] == (SUBPROTOCOL_V1 if v1 else None)
        heard = [frame for text in server.texts for frame in objects(text)]
        assert [frame["id"] for frame in heard if "id" in frame] == published
        types = [frame.get("type") for frame in heard]
        ours = ["welcome", *["notification"] * 3, "pong", "going_away", "error"]
        assert types == (ours if v1 else [None] * 3)
        assert (server.sent[-1]["type"], server.sent[-1]["code"]) == ("websocket.close", 1012)
        assert service.hub.statistics().closed == {1012: 1}

    async def test_client_that_is_behind(self) -> None:
        """A client that is behind gets what has piled up, whole and in order."""
        service, server = Service(), AsgiServer()
        async with self.served(service, server, v1=True):
            server.reads.clear()
            published = []
            for n in range(5):
                published.append(service.backplane.notify("a", n=n))
                await turns()
            assert len(server.texts) == 2
            server.reads.set()
            await turns()
            server.disconnect(1000)
        heard = [frame for text in server.texts for frame in objects(text)]
        assert [frame["id"] for frame in heard[1:]] == published
        assert isinstance(json.loads(server.texts[-1]), list)
        assert service.hub.statistics().closed == {1000: 1}

    @BOTH
    @pytest.mark.parametrize(
        ("messages", "code"),
        [([b"binary"], 1003), (["x" * (MAX_MESSAGE_BYTES + 1)], 1009), (["x"] * 21, 4009)],
    )
    async def test_what_a_client_must_not_do(
        self, v1: bool, messages: list[str] | list[bytes], code: int
    ) -> None:
        """A client that breaks the rules is told so at once, after all that was queued for it."""
        service, server = Service(), AsgiServer()
        async with self.served(service, server, v1=v1):
            for message in messages:
                server.say(message)
        assert server.sent[-1]["code"] == code
        assert service.hub.statistics().closed == {code: 1}
        answers = [frame["type"] for text in server.texts for frame in objects(text)]
        refused = len(messages) - 1
        assert answers == (["welcome", *["error"] * refused, "error"] if v1 else [])

    async def test_client_vanishes(self) -> None:
        """A client that vanishes is counted as such."""
        service, server = Service(), AsgiServer()
        async with self.served(service, server, v1=False):
            server.disconnect(1006)
        assert service.hub.statistics().closed == {1006: 1}

    async def test_server_that_fails(self) -> None:
        """A defect of the server's releases everything and reaches the server."""
        service, server = Service(), AsgiServer()

        async def fail() -> None:
            async with self.served(service, server, v1=False):
                server.failure = ZeroDivisionError()
                service.backplane.publish("a", b"x")

        with pytest.raises(ZeroDivisionError):
            await fail()
        service.assert_nothing_left()
        assert service.hub.statistics().closed == {1006: 1}
