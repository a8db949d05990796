"""A process of the benchmark's own that carries out commands, one at a time."""

import asyncio
import multiprocessing
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Generic, Self, TypeVar

_SPAWN = multiprocessing.get_context("spawn")

Reply = TypeVar("Reply")


class Command(Generic[Reply]):
    """What a remote process is told to do; the type of the answer stands in the brackets."""


class RemoteEndedError(Exception):
    """The process has failed; its traceback is on standard error."""


class Tally:
    """Counts of deliveries, shared between processes; each slot has one writer."""

    def __init__(self, slots: int) -> None:
        # An aligned 64-bit store is atomic, so nobody needs a lock.
        self.counts = _SPAWN.RawArray("Q", slots)

    @property
    def total(self) -> int:
        """Of all slots."""
        return sum(self.counts)


class Remote:
    """An async context manager around one process; `run` gets the other end of the pipe.

    The process ends with this one: `run` returns at the end of the pipe.
    """

    def __init__(
        self, run: Callable[[Connection, Tally, int], None], tally: Tally, slot: int = 0
    ) -> None:
        self._pipe, theirs = _SPAWN.Pipe()
        self._theirs = theirs
        self._process = _SPAWN.Process(target=run, args=(theirs, tally, slot), daemon=True)

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._process.start)
        self._theirs.close()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # It has nothing to save. This also ends a thread that waits for its answer.
        self._process.kill()
        await asyncio.to_thread(self._process.join)
        self._process.close()
        self._pipe.close()

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self._process.pid is not None
        return self._process.pid

    async def ask(self, command: Command[Reply]) -> Reply:
        """The answer. Raises `RemoteEndedError`."""
        self._pipe.send(command)
        try:
            reply: Reply = await asyncio.to_thread(self._pipe.recv)
        except (EOFError, ConnectionError):
            raise RemoteEndedError(type(command).__name__) from None
        return reply


async def serve(pipe: Connection, answer: Callable[[Command[object]], Awaitable[object]]) -> None:
    """In the process: answer commands until the other end closes the pipe."""
    while True:
        try:
            command = await asyncio.to_thread(pipe.recv)
        except EOFError:
            return
        pipe.send(await answer(command))
