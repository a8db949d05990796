"""What waits for one connection: in order, within bounds, and until it is written."""

import asyncio
import sys
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from services.websocket_service.outbound import FRAME_OVERHEAD_BYTES, OutboundFrame
from services.websocket_service.outbox import Outbox, OutboxBudget

# More than any of these outboxes holds.
ALL = 10**9


def frame(name: str, key: str | None = None, *, size: int = 0) -> OutboundFrame:
    """One whose text begins with its name and has `size` bytes, if the name is not longer."""
    return OutboundFrame(name.ljust(size).encode(), 0.0, None if key is None else key.encode())


def names(frames: list[OutboundFrame]) -> list[str]:
    return [frame.text.decode().strip() for frame in frames]


def nobody() -> None:
    pytest.fail("this budget is not exceeded")


def roomy(on_exceeded: Callable[[], None] = nobody) -> OutboxBudget:
    return OutboxBudget(ALL, on_exceeded)


def outbox_of(texts: int, *, max_frames: int = 1000, budget: OutboxBudget | None = None) -> Outbox:
    """An outbox with room for three frames whose texts have so many bytes together."""
    return Outbox(
        max_bytes=texts + 3 * FRAME_OVERHEAD_BYTES,
        max_frames=max_frames,
        budget=budget or roomy(),
    )


class OutboxMachine(RuleBasedStateMachine):
    """Two outboxes with one budget, each beside a plain list."""

    @initialize(
        max_texts=st.integers(1, 30),
        max_frames=st.integers(1, 6),
        budget_frames=st.integers(1, 8),
    )
    def open(self, max_texts: int, max_frames: int, budget_frames: int) -> None:
        self.loop = asyncio.new_event_loop()
        self.max_bytes = max_texts + 3 * FRAME_OVERHEAD_BYTES
        self.max_frames = max_frames
        self.budget = OutboxBudget(budget_frames * FRAME_OVERHEAD_BYTES, self.close_fullest)
        self.outboxes = [
            Outbox(
                max_bytes=self.max_bytes,
                max_frames=max_frames,
                budget=self.budget,
                on_offer=partial(self.call, of),
            )
            for of in range(2)
        ]
        self.waiting: list[list[OutboundFrame]] = [[], []]
        self.called: list[int] = []
        self.cleared: list[int] = []
        self.busy = [False, False]
        self.held = [False, False]
        self.offered = 0
        self.watcher: asyncio.Task[None] | None = None

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            if self.watcher is not None:
                self.watcher.cancel()
            self.turn()
            self.loop.close()

    def turn(self) -> None:
        """Let the task go as far as it can."""

        async def turns() -> None:
            for _ in range(3):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turns())

    def call(self, of: int) -> None:
        self.called.append(of)

    def close_fullest(self) -> None:
        fullest = max(self.outboxes, key=lambda outbox: outbox.used_bytes)
        self.cleared.append(self.outboxes.index(fullest))
        fullest.clear()

    @rule(
        of=st.integers(0, 1),
        size=st.integers(0, 12),
        key=st.sampled_from([None, None, "k", "other"]),
    )
    def offer(self, of: int, size: int, key: str | None) -> None:
        self.offered += 1
        offered = frame(str(self.offered), key, size=size)
        waiting = self.waiting[of]
        waiting[:] = [f for f in waiting if key is None or f.collapse_key != offered.collapse_key]
        has_room = (
            len(waiting) < self.max_frames
            and sum(f.size for f in waiting) + offered.size <= self.max_bytes
        )
        self.called.clear()
        self.cleared.clear()
        assert self.outboxes[of].offer(offered) == has_room
        if not has_room:
            # Whatever is held may leave then.
            self.is_called(of)
            assert self.cleared == []
            return
        waiting.append(offered)
        is_exceeded = self.total > self.budget.max_bytes
        assert len(self.cleared) == is_exceeded
        for cleared in self.cleared:
            assert sum(f.size for f in self.waiting[cleared]) == max(
                sum(f.size for f in waiting) for waiting in self.waiting
            )
            self.waiting[cleared].clear()
        if self.held[of]:
            assert self.called == []
        else:
            self.is_called(of)

    def is_called(self, of: int) -> None:
        """Where there is something for a consumer that does not know of it."""
        assert self.called == ([of] if self.waiting[of] and not self.busy[of] else [])
        self.busy[of] = self.busy[of] or bool(self.waiting[of])

    @rule(of=st.integers(0, 1))
    def hold(self, of: int) -> None:
        self.outboxes[of].hold()
        self.held[of] = True

    @rule(of=st.integers(0, 1))
    def release(self, of: int) -> None:
        self.called.clear()
        self.outboxes[of].release()
        self.held[of] = False
        self.is_called(of)

    @precondition(lambda self: any(self.waiting))
    @rule(of=st.integers(0, 1), max_bytes=st.integers(0, 6 * FRAME_OVERHEAD_BYTES))
    def take(self, of: int, max_bytes: int) -> None:
        if not self.waiting[of]:
            return
        taken = self.outboxes[of].take(max_bytes)
        count = len(taken)
        assert taken == self.waiting[of][:count]
        assert count == 1 or sum(f.size for f in taken) <= max_bytes
        del self.waiting[of][:count]
        if self.waiting[of]:
            assert sum(f.size for f in [*taken, self.waiting[of][0]]) > max_bytes

    @rule(of=st.integers(0, 1))
    def clear(self, of: int) -> None:
        self.outboxes[of].clear()
        self.waiting[of].clear()

    @rule(of=st.integers(0, 1))
    def settle(self, of: int) -> None:
        if not self.waiting[of]:
            self.outboxes[of].settle()
            self.busy[of] = False
            self.watched()

    @precondition(lambda self: self.watcher is None)
    @rule()
    def watch(self) -> None:
        self.watcher = self.loop.create_task(self.outboxes[0].settled())
        self.watched()

    @precondition(lambda self: self.watcher is not None)
    @rule()
    def watch_no_more(self) -> None:
        assert self.watcher is not None
        self.watcher.cancel()
        self.watcher = None
        self.turn()

    def watched(self) -> None:
        self.turn()
        if self.watcher is not None:
            assert self.watcher.done() != self.busy[0]
            if self.watcher.done():
                self.watcher.result()
                self.watcher = None

    @property
    def total(self) -> int:
        return sum(f.size for waiting in self.waiting for f in waiting)

    @invariant()
    def bounded(self) -> None:
        if hasattr(self, "loop"):
            for outbox, waiting in zip(self.outboxes, self.waiting, strict=True):
                assert len(outbox) == len(waiting) <= self.max_frames
                assert outbox.used_bytes == sum(f.size for f in waiting) <= self.max_bytes
            assert self.budget.used_bytes == self.total <= self.budget.max_bytes


TestOutbox = OutboxMachine.TestCase


def test_first_offer_calls_the_consumer() -> None:
    """A frame that is offered to an idle connection is written at once, and each only once."""
    calls = []
    outbox = Outbox(
        max_bytes=ALL, max_frames=10, budget=roomy(), on_offer=lambda: calls.append("called")
    )
    outbox.offer(frame("a"))
    outbox.offer(frame("b"))
    assert names(outbox.take(ALL)) == ["a", "b"]
    outbox.offer(frame("c"))
    assert len(calls) == 1
    assert names(outbox.take(ALL)) == ["c"]
    outbox.settle()
    outbox.offer(frame("d"))
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("sizes", "taken"),
    [
        ([10], [True]),
        ([11 + 2 * FRAME_OVERHEAD_BYTES], [False]),
        ([4, 3, 3], [True, True, True]),
        ([4, 3, 4, 3], [True, True, False, True]),
        ([1, 1, 1, 1], [True, True, True, False]),
        ([0, 0, 0, 0], [True, True, True, False]),
    ],
)
def test_bounds(sizes: list[int], taken: list[bool]) -> None:
    """An outbox of 10 bytes and 3 frames takes no more of either, and is otherwise unharmed."""
    outbox = outbox_of(10, max_frames=3)
    assert [outbox.offer(frame("", size=size)) for size in sizes] == taken


@pytest.mark.parametrize(
    ("max_bytes", "batches"),
    [
        (0, ["a", "b", "c", "d"]),
        (2 * FRAME_OVERHEAD_BYTES + 20, ["ab", "cd"]),
        (3 * FRAME_OVERHEAD_BYTES + 30, ["abc", "d"]),
        (4 * FRAME_OVERHEAD_BYTES + 39, ["abc", "d"]),
        (4 * FRAME_OVERHEAD_BYTES + 40, ["abcd"]),
    ],
)
def test_batches(max_bytes: int, batches: list[str]) -> None:
    """As much as fits leaves together, and one frame in any case."""
    outbox = Outbox(max_bytes=ALL, max_frames=4, budget=roomy())
    for name in "abcd":
        outbox.offer(frame(name, size=10))
    taken = []
    while len(outbox):
        taken.append("".join(names(outbox.take(max_bytes))))
    assert taken == batches


def test_a_newer_one_replaces_an_older_one() -> None:
    """Of the notifications with one key a slow client gets the newest, in its own place."""
    outbox = Outbox(max_bytes=ALL, max_frames=100, budget=roomy())
    for name, key in [("a1", "a"), ("x", None), ("b1", "b"), ("a2", "a"), ("y", None), ("a3", "a")]:
        assert outbox.offer(frame(name, key))
    assert names(outbox.take(ALL)) == ["x", "b1", "y", "a3"]


@pytest.mark.parametrize("max_bytes", [1, ALL], ids=["in part", "in whole"])
def test_what_is_being_written_is_not_replaced(max_bytes: int) -> None:
    """One that has left the queue stays left: the newer one follows it."""
    outbox = Outbox(max_bytes=ALL, max_frames=100, budget=roomy())
    outbox.offer(frame("a1", "a"))
    if max_bytes == 1:
        outbox.offer(frame("y"))
    assert names(outbox.take(max_bytes)) == ["a1"]
    outbox.offer(frame("a2", "a"))
    outbox.offer(frame("x"))
    assert names(outbox.take(ALL))[-2:] == ["a2", "x"]


def test_replacing_makes_room() -> None:
    """A newer one has the room of the older one that it replaces, in bytes and in frames."""
    outbox = outbox_of(10, max_frames=2)
    assert outbox.offer(frame("a1", "a", size=FRAME_OVERHEAD_BYTES + 6))
    assert outbox.offer(frame("x", size=3))
    assert outbox.offer(frame("a2", "a", size=FRAME_OVERHEAD_BYTES + 7))
    assert not outbox.offer(frame("y"))
    assert not outbox.offer(frame("a3", "a", size=FRAME_OVERHEAD_BYTES + 8))
    assert outbox.used_bytes == FRAME_OVERHEAD_BYTES + 3


def test_any_number_of_updates_takes_no_memory() -> None:
    """A client that has stopped reading can be sent updates of one thing for ever."""
    outbox = outbox_of(1000, max_frames=3)
    outbox.offer(frame("x"))
    sizes = []
    for n in range(20_000):
        assert outbox.offer(frame(str(n), "a" if n % 3 else "b", size=100))
        sizes.append(sys.getsizeof(outbox._frames))
    assert max(sizes) < 5_000
    assert names(outbox.take(ALL)) == ["x", "19998", "19999"]


def test_age_is_that_of_the_oldest() -> None:
    """How long a client has been behind is told by what waits longest, not by what was replaced."""
    outbox = Outbox(max_bytes=ALL, max_frames=10, budget=roomy())
    oldest = [outbox.oldest_made_at]
    for made_at, key in [(1.0, b"k"), (2.0, None), (3.0, b"k"), (4.0, None)]:
        outbox.offer(OutboundFrame(b"x", made_at, key))
    oldest.append(outbox.oldest_made_at)
    outbox.take(1)
    oldest.append(outbox.oldest_made_at)
    outbox.clear()
    oldest.append(outbox.oldest_made_at)
    assert oldest == [None, 2.0, 3.0, None]


def test_budget_is_shared() -> None:
    """What waits for all connections is counted together, whoever takes or forgets it."""
    budget = roomy()
    first = outbox_of(100, budget=budget)
    second = outbox_of(100, budget=budget)
    first.offer(frame("a", size=10))
    second.offer(frame("b", size=20))
    second.offer(frame("c", "k", size=30))
    assert budget.used_bytes == first.used_bytes + second.used_bytes
    second.offer(frame("d", "k", size=40))
    assert budget.used_bytes == 3 * FRAME_OVERHEAD_BYTES + 70
    second.take(1)
    first.clear()
    assert budget.used_bytes == second.used_bytes == FRAME_OVERHEAD_BYTES + 40


def test_budget_may_be_met_by_whoever_exceeds_it() -> None:
    """Where the connection that exceeds the budget is the fullest itself, it is the one to go."""
    budget = OutboxBudget(2 * FRAME_OVERHEAD_BYTES + 2, nobody)
    outbox = outbox_of(100, budget=budget)
    budget.on_exceeded = outbox.clear
    for name in "abc":
        assert outbox.offer(frame(name, "k" + name))
    assert (len(outbox), outbox.used_bytes, budget.used_bytes) == (0, 0, 0)
    assert outbox.offer(frame("d", "kc"))
    assert names(outbox.take(ALL)) == ["d"]
    assert budget.used_bytes == 0


async def test_settled_after_the_last_write() -> None:
    """Whoever feeds a client bit by bit goes on when the client has taken what there was."""
    outbox = Outbox(max_bytes=ALL, max_frames=10, budget=roomy())
    await outbox.settled()
    outbox.offer(frame("a"))
    settled = asyncio.create_task(outbox.settled())
    await asyncio.sleep(0)
    assert names(outbox.take(ALL)) == ["a"]
    await asyncio.sleep(0)
    assert not settled.done()
    outbox.settle()
    await settled
    outbox.offer(frame("b"))
    again = asyncio.create_task(outbox.settled())
    await asyncio.sleep(0)
    assert not again.done()
    outbox.clear()
    outbox.settle()
    await again


async def test_settled_means_that_nothing_came_meanwhile() -> None:
    """What is offered before the feeder goes on is waited for too."""
    outbox = Outbox(max_bytes=ALL, max_frames=10, budget=roomy())
    outbox.offer(frame("a"))
    settled = asyncio.create_task(outbox.settled())
    await asyncio.sleep(0)
    outbox.settle()
    outbox.offer(frame("b"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not settled.done()
    outbox.settle()
    await settled
