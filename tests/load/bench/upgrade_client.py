"""A process with many WebSockets that says nothing but what it must: for storms and idle lines.

It offers permessage-deflate as browsers do, and does not look into a message.
"""

import asyncio
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Final

import uvloop

from tests.load.bench.handshakes import Handshake
from tests.load.bench.remote import Command, Tally, serve
from tests.load.bench.wire import (
    CLOSE,
    EXTENDED_SIZE,
    LONG_SIZE,
    OPCODE_BITS,
    PING,
    PONG,
    TEXT,
    client_frame,
    upgrade_request,
)

OPEN_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Opened:
    """All connections."""

    deflated: int
    """Connections on which the server has agreed to permessage-deflate."""


@dataclass(frozen=True, slots=True)
class OpenAll(Command[Opened]):
    """Connect, one WebSocket for each handshake, `at_once` of them under way."""

    port: int
    handshakes: tuple[Handshake, ...]
    at_once: int


@dataclass(frozen=True, slots=True)
class Heard:
    """Since the connections were opened."""

    texts: int
    pings: int
    closed: int


@dataclass(frozen=True, slots=True)
class Listen(Command[Heard]):
    """What has arrived."""


class _Counts:
    def __init__(self, tally: Tally, slot: int) -> None:
        self.texts = tally.counts
        self.slot = slot
        self.pings = 0
        self.closed = 0
        self.deflated = 0


class _Socket(asyncio.Protocol):
    def __init__(self, port: int, handshake: Handshake, counts: _Counts) -> None:
        self._port = port
        self._handshake = handshake
        self._counts = counts
        self._awaited_texts = handshake.opening_texts
        self._received = b""
        self._upgraded = False
        self._transport: asyncio.Transport | None = None
        self.open: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        transport.write(upgrade_request(self._port, self._handshake))

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._upgraded:
            head, separator, rest = self._received.partition(b"\r\n\r\n")
            if not separator:
                return
            self._on_upgrade(head)
            self._received = rest
        while (frame := self._next_frame()) is not None:
            self._on_frame(*frame)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        if self.open.done():
            self._counts.closed += 1
        else:
            self.open.set_exception(ConnectionError("closed before it was open"))

    def _on_upgrade(self, head: bytes) -> None:
        self._upgraded = True
        if not head.startswith(b"HTTP/1.1 101"):
            self.open.set_exception(ConnectionError(head.decode(errors="replace")))
            return
        if b"permessage-deflate" in head:
            self._counts.deflated += 1
        if self._handshake.greeting is not None:
            self._send(TEXT, self._handshake.greeting)
        if self._awaited_texts == 0:
            self.open.set_result(None)

    def _next_frame(self) -> tuple[int, bytes] | None:
        received = self._received
        if len(received) < 2:
            return None
        size, at = received[1], 2
        if size == EXTENDED_SIZE:
            size, at = int.from_bytes(received[2:4]), 4
        elif size == LONG_SIZE:
            size, at = int.from_bytes(received[2:10]), 10
        if len(received) < at + size:
            return None
        self._received = received[at + size :]
        return received[0], received[at : at + size]

    def _on_frame(self, first_byte: int, payload: bytes) -> None:
        opcode = first_byte & OPCODE_BITS
        if opcode == PING:
            self._counts.pings += 1
            self._send(PONG, payload)
        elif opcode == CLOSE and self._transport is not None:
            self._transport.close()
        elif not self.open.done():
            self._awaited_texts -= 1
            if self._awaited_texts == 0:
                self.open.set_result(None)
        elif payload == b"2" and self._handshake.greeting is not None:
            # engine.io's; a compressed one goes unanswered, which ends the line after 45 s.
            self._counts.pings += 1
            self._send(TEXT, b"3")
        else:
            self._counts.texts[self._counts.slot] += 1

    def _send(self, opcode: int, payload: bytes) -> None:
        assert self._transport is not None
        self._transport.write(client_frame(opcode, payload))


class _Client:
    def __init__(self, tally: Tally, slot: int) -> None:
        self._tally = tally
        self._slot = slot
        self._counts = _Counts(tally, slot)

    async def answer(self, command: Command[object]) -> object:
        match command:
            case OpenAll():
                return await self._open(command)
            case Listen():
                counts = self._counts
                return Heard(counts.texts[counts.slot], counts.pings, counts.closed)
        raise TypeError(type(command).__name__)

    async def _open(self, command: OpenAll) -> Opened:
        loop = asyncio.get_running_loop()
        waiting = iter(command.handshakes)

        async def connect_in_turn() -> None:
            for handshake in waiting:
                _, socket = await loop.create_connection(
                    partial(_Socket, command.port, handshake, self._counts),
                    "127.0.0.1",
                    command.port,
                )
                await socket.open

        async with asyncio.timeout(OPEN_TIMEOUT_S), asyncio.TaskGroup() as connecting:
            for _ in range(command.at_once):
                connecting.create_task(connect_in_turn())
        return Opened(self._counts.deflated)


def run(pipe: Connection, tally: Tally, slot: int) -> None:
    """The process."""
    uvloop.run(serve(pipe, _Client(tally, slot).answer))
