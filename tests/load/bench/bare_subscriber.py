"""A process that subscribes with nothing but a socket and hiredis: as fast as Redis tells."""

import select
import socket
import time
from array import array
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Final

import hiredis

from tests.load.bench.messages import SEQUENCE_DIGITS, STAMP_DIGITS, TILDE
from tests.load.bench.remote import Command, Tally

STAMP_AT: Final = 1 + SEQUENCE_DIGITS
READ_BYTES: Final = 65536


@dataclass(frozen=True, slots=True)
class Subscribe(Command[None]):
    """To these channels; answered when Redis has acknowledged all."""

    redis_port: int
    channels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Take(Command[bytes]):
    """An array('q') of nanoseconds from publish to arrival, of all since the last."""


class _Subscriber:
    def __init__(self) -> None:
        self._reader = hiredis.Reader()
        self._latencies_ns = array("q")

    def subscribe(self, command: Subscribe) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", command.redis_port))
        connection.sendall(f"SUBSCRIBE {' '.join(command.channels)}\r\n".encode())
        acknowledged = 0
        while acknowledged < len(command.channels):
            self._reader.feed(connection.recv(READ_BYTES))
            while self._reader.gets() is not False:
                acknowledged += 1
        return connection

    def receive(self, connection: socket.socket) -> None:
        received = connection.recv(READ_BYTES)
        self._reader.feed(received)
        while (message := self._reader.gets()) is not False:
            now_ns = time.monotonic_ns()
            payload = message[2]
            at = payload.index(TILDE) + STAMP_AT
            self._latencies_ns.append(now_ns - int(payload[at : at + STAMP_DIGITS]))

    def take(self) -> bytes:
        taken = self._latencies_ns.tobytes()
        self._latencies_ns = array("q")
        return taken


def run(pipe: Connection, _tally: Tally, _slot: int) -> None:
    """The process."""
    subscriber = _Subscriber()
    sources: list[Connection | socket.socket] = [pipe]
    while True:
        for source in select.select(sources, [], [])[0]:
            if isinstance(source, socket.socket):
                subscriber.receive(source)
                continue
            try:
                command = pipe.recv()
            except EOFError:
                return
            match command:
                case Subscribe():
                    sources.append(subscriber.subscribe(command))
                    pipe.send(None)
                case Take():
                    pipe.send(subscriber.take())
