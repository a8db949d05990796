"""What waits for one connection: in order, within bounds, and until the end."""

import asyncio
import sys

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
from services.websocket_service.publication import Publication


def frame(name: str, size: int = 1, key: str | None = None) -> OutboundFrame:
    """One of the server's own, or with a key a notification."""
    if key is None:
        return OutboundFrame(name, size)
    published = Publication(f'{{"collapse_key":"{key}","event":"{name}"}}'.encode())
    return OutboundFrame(name, size, published)


class OutboxMachine(RuleBasedStateMachine):
    """An outbox beside a plain list; its one consumer may wait, and be cancelled, at any time."""

    @initialize(max_bytes=st.integers(1, 30), max_frames=st.integers(1, 6))
    def open(self, max_bytes: int, max_frames: int) -> None:
        self.loop = asyncio.new_event_loop()
        self.outbox = Outbox(max_bytes=max_bytes, max_frames=max_frames)
        self.max_bytes, self.max_frames = max_bytes, max_frames
        self.waiting: list[OutboundFrame] = []
        self.keys: dict[str, str | None] = {}
        self.finished = False
        self.offered = 0
        self.consumer: asyncio.Task[OutboundFrame | None] | None = None
        self.watcher: asyncio.Task[None] | None = None

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            for task in (self.consumer, self.watcher):
                if task is not None:
                    task.cancel()
            self.turn()
            self.loop.close()

    def turn(self) -> None:
        """Let the tasks go as far as they can."""

        async def turns() -> None:
            for _ in range(3):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turns())

    @rule(size=st.integers(0, 12), key=st.sampled_from([None, None, "k", "other"]))
    def offer(self, size: int, key: str | None) -> None:
        self.offered += 1
        offered = frame(str(self.offered), size, key)
        self.keys[offered.text] = key
        if key is not None:
            self.waiting = [f for f in self.waiting if self.keys[f.text] != key]
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
            assert self.consumer.result() == self.waiting.pop(0)
        self.consumer = None

    @precondition(lambda self: self.watcher is None)
    @rule()
    def watch(self) -> None:
        self.wait()
        self.watcher = self.loop.create_task(self.outbox.emptied())
        self.wait()

    @precondition(lambda self: self.watcher is not None)
    @rule()
    def watch_no_more(self) -> None:
        assert self.watcher is not None
        self.watcher.cancel()
        self.watcher = None
        self.wait()

    @rule()
    def wait(self) -> None:
        self.turn()
        wants_more = self.consumer is not None and not self.waiting
        if self.consumer is not None:
            if self.waiting:
                assert self.consumer.result() == self.waiting.pop(0)
                self.consumer = None
            elif self.finished:
                assert self.consumer.result() is None
                self.consumer = None
            else:
                assert not self.consumer.done()
        if self.watcher is not None:
            assert self.watcher.done() == wants_more
            if wants_more:
                self.watcher.result()
                self.watcher = None

    @invariant()
    def bounded(self) -> None:
        if hasattr(self, "loop"):
            assert len(self.outbox._frames) <= self.max_frames
            assert self.outbox._bytes == sum(f.size for f in self.waiting) <= self.max_bytes


TestOutbox = OutboxMachine.TestCase


async def drained(outbox: Outbox) -> list[str]:
    """All that waits, in order."""
    outbox.finish()
    texts = []
    while (taken := await outbox.take()) is not None:
        texts.append(taken.text)
    return texts


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


async def test_a_newer_one_replaces_an_older_one() -> None:
    """Of the notifications with one key a slow client gets the newest, in its own place."""
    outbox = Outbox(max_bytes=100, max_frames=100)
    for name, key in [("a1", "a"), ("x", None), ("b1", "b"), ("a2", "a"), ("y", None), ("a3", "a")]:
        assert outbox.offer(frame(name, key=key))
    assert await drained(outbox) == ["x", "b1", "y", "a3"]


async def test_what_is_being_written_is_not_replaced() -> None:
    """One that has left the queue stays left: the newer one follows it."""
    outbox = Outbox(max_bytes=100, max_frames=100)
    outbox.offer(frame("a1", key="a"))
    assert await outbox.take() == frame("a1", key="a")
    outbox.offer(frame("a2", key="a"))
    outbox.offer(frame("x"))
    assert await drained(outbox) == ["a2", "x"]


async def test_replacing_makes_room() -> None:
    """A newer one has the room of the older one that it replaces, in bytes and in frames."""
    outbox = Outbox(max_bytes=10, max_frames=2)
    assert outbox.offer(frame("a1", 6, "a"))
    assert outbox.offer(frame("x", 3))
    assert outbox.offer(frame("a2", 7, "a"))
    assert not outbox.offer(frame("y", 0))
    assert not outbox.offer(frame("a3", 8, "a"))
    assert outbox._bytes == 3


async def test_any_number_of_updates_takes_no_memory() -> None:
    """A client that has stopped reading can be sent updates of one thing for ever."""
    outbox = Outbox(max_bytes=1000, max_frames=3)
    outbox.offer(frame("x"))
    sizes = []
    for n in range(20_000):
        assert outbox.offer(frame(str(n), 100, key="a" if n % 3 else "b"))
        sizes.append(sys.getsizeof(outbox._frames))
    assert max(sizes) < 5_000
    assert await drained(outbox) == ["x", "19998", "19999"]


async def test_emptied_is_told_after_the_last_write() -> None:
    """Whoever feeds a client bit by bit goes on when the client has taken what there was."""
    outbox = Outbox(max_bytes=10, max_frames=10)
    outbox.offer(frame("a"))
    emptied = asyncio.create_task(outbox.emptied())
    assert await outbox.take() == frame("a")
    await asyncio.sleep(0)
    assert not emptied.done()
    taking = asyncio.create_task(outbox.take())
    await emptied
    await outbox.emptied()
    outbox.offer(frame("b"))
    assert await taking == frame("b")


async def test_emptied_at_the_end() -> None:
    """An end does not leave the feeder waiting."""
    outbox = Outbox(max_bytes=10, max_frames=10)
    emptied = asyncio.create_task(outbox.emptied())
    await asyncio.sleep(0)
    assert await drained(outbox) == []
    await emptied
