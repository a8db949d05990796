"""Nothing is missed in silence, whatever happens to the live copies and to the history."""

from collections import deque
from collections.abc import Iterator
from copy import deepcopy
from itertools import count

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from huleedu_service_libs.history_pages import HistoryPage, KeptNotification
from huleedu_service_libs.notification_ids import NotificationId, is_origin, offset_of
from services.websocket_service.continuity import (
    MAX_REMEMBERED_IDS,
    Continuity,
    Link,
    Opening,
    Verdict,
)
from services.websocket_service.frames import ResyncReason

NEXT, SEEN, GAP = Verdict.NEXT, Verdict.SEEN, Verdict.GAP


def link(id_: str, prev: str | None) -> Link:
    return Link(NotificationId(id_), NotificationId(prev) if prev else None)


def page(*ids: str, position: str | None = None, complete: bool = True) -> HistoryPage:
    """A page of these entries that ends at its last one, or later where that was collapsed."""
    last = NotificationId(position or ids[-1])
    entries = tuple(KeptNotification(NotificationId(id_), b"{}") for id_ in ids)
    return HistoryPage(newest=last, position=last, complete=complete, entries=entries)


@pytest.mark.parametrize(
    ("position", "heard", "verdict"),
    [
        ("0-9", link("1-a", None), NEXT),
        ("5-a", link("6-b", "5-a"), NEXT),
        # One that is collapsed or expired may be the predecessor all the same.
        ("5-a", link("7-b", "5-a"), NEXT),
        ("5-a", link("5-a", "4-a"), SEEN),
        ("1-a", link("1-a", None), SEEN),
        ("5-a", link("7-b", "6-b"), GAP),
        ("5-a", link("4-a", "3-a"), GAP),
        # The offset came again after a loss; the nonce did not.
        ("5-a", link("5-b", "4-a"), GAP),
        ("5-a", link("6-b", "5-b"), GAP),
        ("5-a", link("1-b", None), GAP),
        ("0-9", link("2-a", "1-a"), GAP),
    ],
)
def test_verdict(position: str, heard: Link, verdict: Verdict) -> None:
    """A live notification is shown if its predecessor was, dropped if it was, else looked up."""
    continuity = Continuity(NotificationId(position))
    assert continuity.judge(heard) is verdict
    assert continuity.position == (heard.id if verdict is NEXT else position)


def test_live_copies_of_what_was_replayed_are_dropped() -> None:
    """What came out of the history is not shown again when its live copy comes."""
    continuity = Continuity(NotificationId("2-a"))
    continuity.read(page("3-a", "4-a", complete=False))
    continuity.read(page("5-a"))
    for heard in (link("3-a", "2-a"), link("4-a", "3-a"), link("5-a", "4-a")):
        assert continuity.judge(heard) is SEEN
    assert continuity.judge(link("6-a", "5-a")) is NEXT


def test_what_was_collapsed_or_had_expired_is_no_loss() -> None:
    """A live copy of a notification that the history left out is looked up, and dropped."""
    continuity = Continuity(NotificationId("1-a"))
    assert continuity.judge(link("2-a", "1-a")) is NEXT
    continuity.read(page("4-a", position="5-a"))
    for heard in (link("3-a", "2-a"), link("5-a", "4-a")):
        assert continuity.judge(heard) in {GAP, SEEN}
        assert continuity.may_be_behind(heard)
    assert continuity.judge(link("6-a", "5-a")) is NEXT


def test_what_the_history_does_not_have_is_a_loss() -> None:
    """A live notification that the history should have, and has not, means that Redis lost it."""
    continuity = Continuity(NotificationId("2-a"))
    heard = link("4-a", "3-a")
    assert continuity.judge(heard) is GAP
    continuity.read(page("2-a"))
    assert not continuity.may_be_behind(heard)


def test_an_older_one_after_a_newer_one_is_a_loss() -> None:
    """Once live ones follow each other, one from before them can only come from another chain."""
    continuity = Continuity(NotificationId("2-a"))
    assert continuity.judge(link("3-a", "2-a")) is NEXT
    heard = link("3-b", "2-b")
    assert continuity.judge(heard) is GAP
    continuity.read(page("3-a"))
    assert not continuity.may_be_behind(heard)


def test_after_a_restart_older_ones_are_accounted_for() -> None:
    """A client that was told to fetch its state is not told of what that state holds already."""
    continuity = Continuity(NotificationId("2-a"))
    continuity.read(page("3-a"))
    assert continuity.judge(link("4-a", "3-a")) is NEXT
    continuity.restart(NotificationId("7-b"))
    assert continuity.judge(link("3-a", "2-a")) is GAP
    assert continuity.may_be_behind(link("6-b", "5-b"))
    assert continuity.judge(link("7-b", "6-b")) is SEEN
    assert continuity.judge(link("8-b", "7-b")) is NEXT


def test_memory_is_bounded() -> None:
    """However long a replay is, little of it is remembered; the rest is looked up."""
    continuity = Continuity(NotificationId("0-9"))
    ids = [f"{n}-a" for n in range(1, 3 * MAX_REMEMBERED_IDS)]
    for start in range(0, len(ids), 200):
        continuity.read(page(*ids[start : start + 200]))
    assert len(continuity._ahead) <= MAX_REMEMBERED_IDS
    heard = link(ids[-2], ids[-3])
    assert continuity.judge(heard) is GAP
    assert continuity.may_be_behind(heard)
    assert continuity.judge(link("9000-a", ids[-1])) is NEXT
    assert not continuity._ahead
    continuity.read(page("9001-a"))
    continuity.restart(NotificationId("9002-a"))
    assert not continuity._ahead


@pytest.mark.parametrize(
    ("opening", "resumed", "cursor"),
    [
        (Opening(NotificationId("0-9"), NotificationId("0-9")), None, None),
        (Opening(NotificationId("5-a"), NotificationId("5-a")), None, "5-a"),
        (Opening(NotificationId("2-a"), NotificationId("5-a"), missed=page("5-a")), True, "5-a"),
        (
            Opening(
                NotificationId("5-a"),
                NotificationId("5-a"),
                resync=ResyncReason.HISTORY_TRIMMED,
            ),
            False,
            "5-a",
        ),
        (
            Opening(NotificationId("0-9"), NotificationId("0-9"), resync=ResyncReason.HISTORY_LOST),
            False,
            None,
        ),
    ],
)
def test_opening(opening: Opening, resumed: bool | None, cursor: str | None) -> None:
    """A client learns whether it was resumed, and which notification is the newest, if any."""
    assert opening.resumed is resumed
    assert opening.cursor == cursor


class Chain:
    """A user's notifications as Redis has them: all of this timeline, and those still kept."""

    def __init__(self) -> None:
        self._nonces = count(1)
        self.ids = [self._id(0)]
        """From the origin on."""
        self.first_kept = 1

    def _id(self, offset: int) -> NotificationId:
        return NotificationId(f"{offset}-{next(self._nonces)}")

    @property
    def last(self) -> NotificationId:
        return self.ids[-1]

    def publish(self) -> Link:
        published = Link(
            self._id(offset_of(self.last) + 1), None if is_origin(self.last) else self.last
        )
        self.ids.append(published.id)
        return published

    def trim(self) -> None:
        """Keep half of what is kept, the newest always."""
        self.first_kept = (self.first_kept + len(self.ids)) // 2

    def flush(self) -> None:
        self.ids = [self._id(0)]
        self.first_kept = 1

    def after(self, cursor: NotificationId, max_entries: int) -> HistoryPage | None:
        """None where it can't be proven."""
        if cursor == self.last:
            return page(position=cursor)
        # The oldest one names what it follows.
        provable = self.ids[self.first_kept - 1 :]
        if cursor not in provable:
            return None
        rest = provable[provable.index(cursor) + 1 :]
        return page(*rest[:max_entries], complete=len(rest) <= max_entries)


class ContinuityMachine(RuleBasedStateMachine):
    """A reader of a chain whose live copies get lost, and whose history is trimmed and lost."""

    @initialize(page_size=st.integers(1, 3), published=st.integers(0, 3))
    def open(self, page_size: int, published: int) -> None:
        self.chain = Chain()
        self.page_size = page_size
        for _ in range(published):
            self.chain.publish()
        self.snapshot = deepcopy(self.chain)
        self.history_is_whole = True
        self.continuity = Continuity(self.chain.last)
        self.begin()
        # Live copies on their way, in order; None stands for a gap.
        self.wire: deque[Link | None] = deque()
        self.reader = self.read()

    def begin(self) -> None:
        self.start = self.continuity.position
        self.shown: list[NotificationId] = []

    def read(self) -> Iterator[None]:
        """What a connection's listener does; anything may happen at each `yield`."""
        while True:
            while not self.wire:
                yield
            heard = self.wire.popleft()
            verdict = GAP if heard is None else self.continuity.judge(heard)
            if verdict is NEXT and heard is not None:
                self.shown.append(heard.id)
            elif verdict is GAP:
                yield from self.look_up(heard)

    def look_up(self, heard: Link | None) -> Iterator[None]:
        complete = False
        while not complete:
            yield
            found = self.chain.after(self.continuity.position, self.page_size)
            if found is None:
                self.restart()
                return
            self.continuity.read(found)
            self.shown += [entry.id for entry in found.entries]
            complete = found.complete
        if heard is None or self.continuity.has_handed_on(heard.id):
            return
        if not self.continuity.may_be_behind(heard):
            self.restart()
            return
        yield
        page_behind = self.chain.after(heard.id, self.page_size)
        if page_behind is not None:
            self.continuity.look_back(page_behind)

    def restart(self) -> None:
        assert not self.history_is_whole, "a restart without a reason"
        self.continuity.restart(self.chain.last)
        self.begin()

    @rule(heard=st.booleans(), copies=st.sampled_from([1, 1, 2]))
    def publish(self, heard: bool, copies: int) -> None:
        published = self.chain.publish()
        if heard:
            self.wire.extend([published] * copies)

    @rule()
    def reconnect(self) -> None:
        self.wire.append(None)

    @rule(turns=st.integers(1, 4))
    def turn(self, turns: int) -> None:
        for _ in range(turns):
            next(self.reader)

    @rule()
    def trim(self) -> None:
        self.chain.trim()
        self.history_is_whole = False

    @rule(connection_lost=st.booleans())
    def flush(self, connection_lost: bool) -> None:
        self.chain.flush()
        self.history_is_whole = False
        if connection_lost:
            self.reconnect()

    @rule()
    def save(self) -> None:
        self.snapshot = deepcopy(self.chain)

    @rule()
    def roll_back(self) -> None:
        """Redis comes back as it once was; its connections do not survive that."""
        nonces = self.chain._nonces
        self.chain = deepcopy(self.snapshot)
        self.chain._nonces = nonces
        self.history_is_whole = False
        self.reconnect()

    @invariant()
    def nothing_is_shown_twice(self) -> None:
        if hasattr(self, "chain"):
            assert len(set(self.shown)) == len(self.shown)

    def teardown(self) -> None:
        """Once a live one has come, all since the beginning has been shown, in order."""
        if not hasattr(self, "chain"):
            return
        self.publish(heard=True, copies=1)
        while self.wire:
            next(self.reader)
        for _ in range(len(self.chain.ids)):
            next(self.reader)
        # Nothing precedes a user's first one, whichever origin the reader knew.
        start = 0 if is_origin(self.start) else self.chain.ids.index(self.start)
        assert self.shown == self.chain.ids[start + 1 :]


TestContinuity = ContinuityMachine.TestCase
