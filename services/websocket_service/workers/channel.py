"""What a worker and its supervisor say to each other, over a pair of Unix sockets.

Its end is news, too: a process that is gone, for whatever reason, has closed its side.
"""

import asyncio
import contextlib
import socket
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Self

_HEAD: Final = struct.Struct("!BI")


class Kind(IntEnum):
    """What a message is about."""

    READY = 1
    """Worker: it serves."""
    FAILED = 2
    """Worker: why it can't start."""
    REPORT = 3
    """Supervisor: asks for the worker's metrics. Worker: these are they, asked or not."""
    PAGE = 4
    """Worker: asks for everybody's metrics. Supervisor: these are they."""


@dataclass(frozen=True, slots=True)
class Message:
    """`body` is UTF-8; metrics are in Prometheus' text format."""

    kind: Kind
    body: bytes = b""


class Channel:
    """One side of the pair."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, connected: socket.socket) -> Self:
        """Takes the socket over, and closes it in the end."""
        return cls(*await asyncio.open_unix_connection(sock=connected))

    async def receive(self) -> Message | None:
        """The next message; None once the other side is gone."""
        try:
            kind, size = _HEAD.unpack(await self._reader.readexactly(_HEAD.size))
            return Message(Kind(kind), await self._reader.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    def send(self, kind: Kind, body: bytes = b"") -> None:
        """Write without waiting; nothing happens where the other side is gone."""
        if not self._writer.is_closing():
            self._writer.write(_HEAD.pack(kind, len(body)) + body)

    async def drain(self) -> None:
        """Wait until the other side has read most of it. Raises ConnectionError."""
        await self._writer.drain()

    async def close(self) -> None:
        """Write what is left, and leave."""
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()
