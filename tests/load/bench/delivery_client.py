"""A process with many WebSockets that counts and checks what arrives."""

import asyncio
import time
from array import array
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Final

import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

from tests.load.bench.handshakes import Handshake
from tests.load.bench.messages import SEQUENCE_DIGITS, STAMP_DIGITS, TILDE
from tests.load.bench.remote import Command, Tally, serve

STAMP_AT: Final = 1 + SEQUENCE_DIGITS
MARK_BYTES: Final = STAMP_AT + STAMP_DIGITS
AT_ONCE: Final = 50
"""Handshakes under way."""
OPEN_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Open(Command[None]):
    """Connect, one WebSocket for each handshake; answered when all are open."""

    port: int
    handshakes: tuple[Handshake, ...]


@dataclass(frozen=True, slots=True)
class Received:
    """Since the connections were opened."""

    deliveries: int
    out_of_order: int
    """Deliveries whose number was not the one after the last."""
    closed: int
    """Connections that the server has ended."""


@dataclass(frozen=True, slots=True)
class Count(Command[Received]):
    """What has arrived."""


@dataclass(frozen=True, slots=True)
class TakeLatencies(Command[bytes]):
    """An array('q') of nanoseconds from publish to arrival, one for each delivery since the last.

    `keep` says whether those to come are kept.
    """

    keep: bool


class _Arrivals:
    """Of all connections of the process."""

    def __init__(self, tally: Tally, slot: int) -> None:
        self.counts = tally.counts
        self.slot = slot
        self.out_of_order = 0
        self.closed = 0
        self.latencies_ns: array[int] | None = None


class _Listener(WSListener):
    def __init__(self, handshake: Handshake, arrivals: _Arrivals) -> None:
        self._handshake = handshake
        self._arrivals = arrivals
        self._awaited_texts = handshake.opening_texts
        self._expected = 0
        self.open: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_ws_connected(self, transport: WSTransport) -> None:
        if self._handshake.greeting is not None:
            transport.send(WSMsgType.TEXT, self._handshake.greeting)
        if self._awaited_texts == 0:
            self.open.set_result(None)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        payload = frame.get_payload_as_bytes()
        at = payload.find(TILDE)
        if at < 0:
            self._on_other(transport, frame, payload)
            return
        arrivals = self._arrivals
        count = 0
        while at >= 0:
            sequence = int(payload[at + 1 : at + STAMP_AT])
            if sequence != self._expected:
                arrivals.out_of_order += 1
            self._expected = sequence + 1
            count += 1
            if arrivals.latencies_ns is not None:
                stamp_ns = int(payload[at + STAMP_AT : at + MARK_BYTES])
                arrivals.latencies_ns.append(time.monotonic_ns() - stamp_ns)
            # An array of several notifications may come in one frame.
            at = payload.find(TILDE, at + MARK_BYTES)
        arrivals.counts[arrivals.slot] += count

    def _on_other(self, transport: WSTransport, frame: WSFrame, payload: bytes) -> None:
        if frame.msg_type is WSMsgType.CLOSE:
            transport.disconnect()
        elif frame.msg_type is WSMsgType.TEXT and not self.open.done():
            self._awaited_texts -= 1
            if self._awaited_texts == 0:
                self.open.set_result(None)
        elif payload == b"2" and self._handshake.greeting is not None:
            transport.send(WSMsgType.TEXT, b"3")  # engine.io's ping

    def on_ws_disconnected(self, transport: WSTransport) -> None:  # noqa: ARG002 - picows' signature
        if not self.open.done():
            self.open.set_exception(ConnectionError("closed before it was open"))
        else:
            self._arrivals.closed += 1


class _Client:
    def __init__(self, tally: Tally, slot: int) -> None:
        self._tally = tally
        self._slot = slot
        self._arrivals = _Arrivals(tally, slot)

    async def answer(self, command: Command[object]) -> object:
        match command:
            case Open():
                await self._open(command)
                return None
            case Count():
                arrivals = self._arrivals
                return Received(
                    arrivals.counts[arrivals.slot], arrivals.out_of_order, arrivals.closed
                )
            case TakeLatencies():
                taken = self._arrivals.latencies_ns or array("q")
                self._arrivals.latencies_ns = array("q") if command.keep else None
                return taken.tobytes()
        raise TypeError(type(command).__name__)

    async def _open(self, command: Open) -> None:
        self._tally.counts[self._slot] = 0
        self._arrivals = _Arrivals(self._tally, self._slot)
        slots = asyncio.Semaphore(AT_ONCE)

        async def connect(handshake: Handshake) -> None:
            async with slots, asyncio.timeout(OPEN_TIMEOUT_S):
                listener = _Listener(handshake, self._arrivals)
                await ws_connect(
                    lambda: listener,
                    f"ws://127.0.0.1:{command.port}{handshake.path}",
                    extra_headers=list(handshake.headers),
                    websocket_handshake_timeout=OPEN_TIMEOUT_S,
                )
                await listener.open

        async with asyncio.TaskGroup() as connecting:
            for handshake in command.handshakes:
                connecting.create_task(connect(handshake))


def run(pipe: Connection, tally: Tally, slot: int) -> None:
    """The process."""
    uvloop.run(serve(pipe, _Client(tally, slot).answer))
