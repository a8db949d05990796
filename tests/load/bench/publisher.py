"""A process that publishes prepared commands, so fast that it is not the limit."""

import socket
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Final

from tests.load.bench.messages import TILDE, mark
from tests.load.bench.recording import Prepared
from tests.load.bench.remote import Command, Tally

STALL_S: Final = 3.0
"""Without a confirmation for this long, what is missing counts as lost."""
POLL_S: Final = 0.0002
TICK_S: Final = 0.001


@dataclass(frozen=True, slots=True)
class Prepare(Command[None]):
    """Connect to Redis; one prepared command for each user."""

    redis_port: int
    commands: tuple[Prepared, ...]
    receivers: int
    """Connections of each user."""


@dataclass(frozen=True, slots=True)
class Published:
    """What went out."""

    messages: int
    stalled_s: float
    """It ended early, after so long without a confirmation."""


@dataclass(frozen=True, slots=True)
class Saturate(Command[Published]):
    """Publish to all users in turn for this long, this many deliveries ahead of the clients."""

    seconds: float
    window: int


@dataclass(frozen=True, slots=True)
class Pace(Command[Published]):
    """Publish to all users in turn, evenly."""

    seconds: float
    messages_per_s: float


@dataclass(frozen=True, slots=True)
class Once(Command[Published]):
    """One message to each user."""


class _Publisher:
    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._socket: socket.socket | None = None
        self._commands: tuple[Prepared, ...] = ()
        self._pieces: tuple[bytes, ...] = ()
        self._receivers = 1
        self._next = 0  # message, in the order of users and rounds

    def prepare(self, command: Prepare) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = socket.create_connection(("127.0.0.1", command.redis_port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Nobody reads the replies.
        self._socket.sendall(b"CLIENT REPLY OFF\r\n")
        self._commands = command.commands
        self._receivers = command.receivers
        self._next = 0
        # All users' commands with a gap for each mark: a round is one join.
        first, *rest = command.commands
        pieces = [first.before + TILDE]
        previous = first
        for prepared in rest:
            pieces.append(previous.after + prepared.before + TILDE)
            previous = prepared
        self._pieces = (*pieces, previous.after)

    def saturate(self, command: Saturate) -> Published:
        users = len(self._commands)
        round_deliveries = users * self._receivers
        base = self._tally.total
        sent = 0
        began = confirmed_at = time.monotonic()
        confirmed = 0
        stalled_s = 0.0
        while (now := time.monotonic()) - began < command.seconds:
            seen = self._tally.total - base
            if seen > confirmed:
                confirmed, confirmed_at = seen, now
            if sent + round_deliveries - seen > command.window:
                if now - confirmed_at > STALL_S:
                    stalled_s = now - confirmed_at
                    break
                time.sleep(POLL_S)
                continue
            self._round()
            sent += round_deliveries
        return Published(sent // self._receivers, stalled_s)

    def pace(self, command: Pace) -> Published:
        users = len(self._commands)
        total = round(command.seconds * command.messages_per_s / users) * users
        began = time.monotonic()
        sent = 0
        while sent < total:
            due = min(total, int((time.monotonic() - began) * command.messages_per_s) + 1)
            if due > sent:
                stamp_ns = time.monotonic_ns()
                self._send(b"".join(self._one(self._next + i, stamp_ns) for i in range(due - sent)))
                self._next += due - sent
                sent = due
            time.sleep(TICK_S)
        return Published(sent, 0.0)

    def once(self) -> Published:
        self._round()
        return Published(len(self._commands), 0.0)

    def _round(self) -> None:
        users = len(self._commands)
        self._send(mark(self._next // users, time.monotonic_ns()).join(self._pieces))
        self._next += users

    def _one(self, number: int, stamp_ns: int) -> bytes:
        sequence, user = divmod(number, len(self._commands))
        prepared = self._commands[user]
        return prepared.before + TILDE + mark(sequence, stamp_ns) + prepared.after

    def _send(self, commands: bytes) -> None:
        assert self._socket is not None
        self._socket.sendall(commands)


def run(pipe: Connection, tally: Tally, _: int) -> None:
    """The process."""
    publisher = _Publisher(tally)
    while True:
        try:
            command = pipe.recv()
        except EOFError:
            return
        match command:
            case Prepare():
                publisher.prepare(command)
                pipe.send(None)
            case Saturate():
                pipe.send(publisher.saturate(command))
            case Pace():
                pipe.send(publisher.pace(command))
            case Once():
                pipe.send(publisher.once())
