"""What waits for one connection: in order, within bounds, and until the end."""

import asyncio
from collections import deque

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from services.websocket_service.outbox import OutboundFrame, Outbox


def frame(name: str, size: int = 1) -> OutboundFrame:
    return OutboundFrame(name, size)


class OutboxMachine(RuleBasedStateMachine):
    """An outbox beside a plain list; its one consumer may wait, and be cancelled, at any time."""

    @initialize(max_bytes=st.integers(1, 30), max_frames=st.integers(1, 6))
    def open(self, max_bytes: int, max_frames: int) -> None:
        self.loop = asyncio.new_event_loop()
        self.outbox = Outbox(max_bytes=max_bytes, max_frames=max_frames)
        self.max_bytes, self.max_frames = max_bytes, max_frames
        self.waiting: deque[OutboundFrame] = deque()
        self.finished = False
        self.offered = 0
        self.consumer: asyncio.Task[OutboundFrame | None] | None = None

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            if self.consumer is not None:
                self.consumer.cancel()
                self.turn()
            self.loop.close()

    def turn(self) -> None:
        """Let the consumer go as far as it can."""

        async def turns() -> None:
            for _ in range(3):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turns())

    @rule(size=st.integers(0, 12))
    def offer(self, size: int) -> None:
        self.offered += 1
        offered = frame(str(self.offered), size)
        room = (
            len(self.waiting) < self.max_frames
            and sum(f.size for f in self.waiting) + size <= self.max_bytes
        )
        assert self.outbox.offer(offered) == room
        if room:
            self.waiting.append(offered)

    @rule()
    def finish(self) -> None:
        self.outbox.finish()
        self.finished = True

    @precondition(lambda self: self.consumer is None)
    @rule()
    def take(self) -> None:
        self.consumer = self.loop.create_task(self.outbox.take())

    @precondition(lambda self: self.consumer is not None)
    @rule()
    def cancel(self) -> None:
        assert self.consumer is not None
        self.consumer.cancel()
        self.turn()
        if not self.consumer.cancelled():
            assert self.consumer.result() == self.waiting.popleft()
        self.consumer = None

    @rule()
    def wait(self) -> None:
        self.turn()
        if self.consumer is None:
            return
        if self.waiting:
            assert self.consumer.result() == self.waiting.popleft()
        elif self.finished:
            assert self.consumer.result() is None
        else:
            assert not self.consumer.done()
            return
        self.consumer = None

    @invariant()
    def bounded(self) -> None:
        if hasattr(self, "loop"):
            assert len(self.waiting) <= self.max_frames
            assert sum(f.size for f in self.waiting) <= self.max_bytes


TestOutbox = OutboxMachine.TestCase


async def test_waiting_writer_gets_the_frame() -> None:
    """A frame that is offered to an idle connection is written at once."""
    outbox = Outbox(max_bytes=10, max_frames=10)
    async with asyncio.TaskGroup() as tasks:
        taking = tasks.create_task(outbox.take())
        await asyncio.sleep(0)
        assert not taking.done()
        assert outbox.offer(frame("a"))
    assert taking.result() == frame("a")


async def test_end_comes_after_what_was_offered() -> None:
    """A client that is told to go gets first what was waiting for it."""
    outbox = Outbox(max_bytes=10, max_frames=10)
    outbox.offer(frame("a"))
    outbox.offer(frame("b"))
    outbox.finish()
    assert [await outbox.take() for _ in range(3)] == [frame("a"), frame("b"), None]
    assert await outbox.take() is None


async def test_end_wakes_the_writer() -> None:
    """A connection with nothing to write ends at once."""
    outbox = Outbox(max_bytes=10, max_frames=10)
    async with asyncio.TaskGroup() as tasks:
        taking = tasks.create_task(outbox.take())
        await asyncio.sleep(0)
        outbox.finish()
    assert taking.result() is None


@pytest.mark.parametrize(
    ("sizes", "taken"),
    [
        ([10], [True]),
        ([11], [False]),
        ([4, 6], [True, True]),
        ([4, 7, 6], [True, False, True]),
        ([1, 1, 1, 1], [True, True, True, False]),
        ([0, 0, 0, 0], [True, True, True, False]),
    ],
)
async def test_bounds(sizes: list[int], taken: list[bool]) -> None:
    """An outbox of 10 bytes and 3 frames takes no more of either, and is otherwise unharmed."""
    outbox = Outbox(max_bytes=10, max_frames=3)
    assert [outbox.offer(frame("x", size)) for size in sizes] == taken
