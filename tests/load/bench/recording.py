"""The commands that a publisher's library really sends, recorded once to be sent again fast."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from tests.load.bench.messages import BLANK_MARK

_BLANK = BLANK_MARK.encode()


@dataclass(frozen=True, slots=True)
class Prepared:
    """A command around the digits of its mark, without the tilde."""

    before: bytes
    after: bytes


Publish = Callable[[str], Awaitable[None]]
"""Publishes one notification with a blank mark to a user."""

Publisher = Callable[[str, int], AbstractAsyncContextManager[Publish]]
"""Given a Redis URL and the size of each message in bytes."""


class _Wire:
    """What has gone to Redis since the last look."""

    def __init__(self, redis_port: int) -> None:
        self._redis_port = redis_port
        self._sent = bytearray()

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        redis_reader, redis_writer = await asyncio.open_connection("127.0.0.1", self._redis_port)

        async def back() -> None:
            while data := await redis_reader.read(65536):
                writer.write(data)

        returning = asyncio.create_task(back())
        try:
            while data := await reader.read(65536):
                self._sent += data
                redis_writer.write(data)
        finally:
            redis_writer.close()
            await returning
            writer.close()

    def take(self) -> bytes:
        sent = bytes(self._sent)
        self._sent.clear()
        return sent


async def record(
    redis_port: int,
    users: Sequence[str],
    publisher: Publisher,
    message_bytes: int,
) -> tuple[Prepared, ...]:
    """The command of each user."""
    wire = _Wire(redis_port)
    server = await asyncio.start_server(wire.forward, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        async with publisher(f"redis://127.0.0.1:{port}", message_bytes) as publish:
            # The first may differ: connections are made, scripts loaded, expiries set.
            for user in (*users, users[0]):
                await publish(user)
            wire.take()
            prepared = []
            for user in users:
                await publish(user)
                prepared.append(_prepared(wire.take()))
    return tuple(prepared)


def _prepared(sent: bytes) -> Prepared:
    marked = [command for command in _commands(sent) if _BLANK in command]
    if len(marked) != 1:
        raise ValueError(f"{len(marked)} commands with a mark for one notification")
    before, after = marked[0].split(_BLANK)
    return Prepared(before, after)


def _commands(sent: bytes) -> Iterator[bytes]:
    """Each array of bulk strings, as it stands."""
    at = 0
    while at < len(sent):
        began = at
        end = sent.index(b"\r\n", at)
        count = int(sent[at + 1 : end])
        at = end + 2
        for _ in range(count):
            end = sent.index(b"\r\n", at)
            at = end + 2 + int(sent[at + 1 : end]) + 2
        yield sent[began:at]
