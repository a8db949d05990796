from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Self

import pytest

from huleedu_service_libs.testing.tcp_proxy import TcpProxy, is_message, split_replies

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

GIVE_UP_AFTER_S = 20.0
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Target:
    """Echoes what it gets, and can say something by itself."""

    def __init__(self) -> None:
        self.port = 0
        self.ended = asyncio.Semaphore(0)
        self._server: asyncio.Server | None = None
        self.writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._echo, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self.writers:
            writer.transport.abort()

    async def _echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        try:
            while data := await reader.read(1024):
                writer.write(data)
        except ConnectionError:
            pass
        finally:
            self.ended.release()
            writer.transport.abort()


@pytest.fixture
async def target() -> AsyncIterator[Target]:
    async with Target() as running:
        yield running


@asynccontextmanager
async def connected(proxy: TcpProxy) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def echoed(streams: Streams, text: bytes) -> bytes:
    reader, writer = streams
    writer.write(text)
    async with asyncio.timeout(GIVE_UP_AFTER_S):
        return await reader.readexactly(len(text))


async def test_forwards(target: Target) -> None:
    """Bytes go through unchanged, whatever their number, for several clients at once."""
    big = bytes(range(256)) * 4096
    async with TcpProxy(target.port) as proxy, connected(proxy) as one, connected(proxy) as other:
        assert proxy.url == f"redis://127.0.0.1:{proxy.port}"
        answer, other_answer = await asyncio.gather(echoed(one, big), echoed(other, b"small"))
        assert answer == big
        assert other_answer == b"small"
        assert (proxy.connections, proxy.accepted) == (2, 2)


@pytest.mark.parametrize("reset", [False, True])
async def test_cut(target: Target, *, reset: bool) -> None:
    """A cut ends both ends of every connection; a new one goes through."""
    async with TcpProxy(target.port) as proxy, connected(proxy) as streams:
        await echoed(streams, b"x")
        await proxy.cut(reset=reset)
        async with asyncio.timeout(GIVE_UP_AFTER_S):
            if reset:
                with pytest.raises(ConnectionResetError):
                    await streams[0].read()
            else:
                assert await streams[0].read() == b""
            await target.ended.acquire()
        assert (proxy.connections, proxy.accepted) == (0, 1)
        async with connected(proxy) as again:
            assert await echoed(again, b"x") == b"x"


async def test_refuse(target: Target) -> None:
    """While new connections are refused, open ones work on; later the same port is open again."""
    async with TcpProxy(target.port) as proxy, connected(proxy) as streams:
        await echoed(streams, b"x")
        await proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", proxy.port)
        assert await echoed(streams, b"y") == b"y"
        port = proxy.port
        await proxy.accept()
        assert proxy.port == port
        async with connected(proxy) as again:
            assert await echoed(again, b"z") == b"z"


@pytest.mark.parametrize("direction", ["to_server", "to_client"])
async def test_hold(target: Target, direction: str) -> None:
    """What is held does not come through, and comes once it flows again."""
    async with TcpProxy(target.port) as proxy, connected(proxy) as streams:
        await echoed(streams, b"x")
        proxy.hold(to_server=direction == "to_server", to_client=direction == "to_client")
        waiting = asyncio.create_task(echoed(streams, b"held"))
        if direction == "to_server":
            # The other direction is open.
            target.writers[0].write(b"held")
            assert await waiting == b"held"
            waiting = asyncio.create_task(echoed(streams, b""))
        async with connected(proxy) as other:
            answer = asyncio.create_task(echoed(other, b"also held"))
            # A held proxy still accepts.
            async with asyncio.timeout(GIVE_UP_AFTER_S):
                while proxy.accepted < 2:  # noqa: ASYNC110 - the proxy has no event for it
                    await asyncio.sleep(0)
            assert not answer.done()
            proxy.flow()
            assert await answer == b"also held"
        await waiting


async def test_server_is_away(target: Target) -> None:
    """A client of a proxy whose server is away is disconnected."""
    async with TcpProxy(target.port) as proxy:
        await target.__aexit__()
        async with connected(proxy) as (reader, _), asyncio.timeout(GIVE_UP_AFTER_S):
            assert await reader.read() == b""


REPLIES = [
    b"+OK\r\n",
    b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$4\r\n\r\n$1\r\n",
    b"$-1\r\n",
    b"*-1\r\n",
    b"*0\r\n",
    b":7\r\n",
    b"*2\r\n*1\r\n$0\r\n\r\n$2\r\n\r\n\r\n",
    b"*3\r\n$8\r\nsmessage\r\n$1\r\na\r\n$0\r\n\r\n",
    b"-ERR no\r\n",
]


def test_replies_are_split_wherever_the_bytes_are() -> None:
    """A stream of replies is split into the same replies, whatever pieces it comes in."""
    stream = b"".join(REPLIES)
    for cut in range(len(stream) + 1):
        first, rest = split_replies(stream[:cut])
        others, nothing = split_replies(rest + stream[cut:])
        assert first + others == REPLIES
        assert nothing == b""
    assert [is_message(reply) for reply in REPLIES].count(True) == 2


async def test_deaf(target: Target) -> None:
    """Whoever is made deaf gets every answer, and nothing of what is published."""
    async with (
        TcpProxy(target.port, keep=lambda reply: not is_message(reply)) as proxy,
        connected(proxy) as (reader, writer),
    ):
        for reply in REPLIES:
            writer.write(reply)
        expected = b"".join(reply for reply in REPLIES if not is_message(reply))
        async with asyncio.timeout(GIVE_UP_AFTER_S):
            assert await reader.readexactly(len(expected)) == expected
