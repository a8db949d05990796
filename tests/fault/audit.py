"""What of a ledger is in order, and what is not.

Between two notifications that a tab received one after the other, either the second names the
first as its predecessor, or the tab was told in between that something may be missing. A plain
tab is told by the end of its connection, and counts from the next one on.

A receipt that fits nowhere is a loss too: what Redis has acknowledged belongs into the chain. Only
where Redis itself went back, or had two masters for a while, can an acknowledged notification have
vanished without a link that names it; that is *forgotten*, and no service that was not listening
could know of it.
"""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.fault.ledger import (
    Closed,
    Ledger,
    Moment,
    Opened,
    Publication,
    Received,
    Remark,
    Resynced,
    TabHistory,
    Welcomed,
)

# No close frame, a restart, Redis away, a queue that is full: what a tab comes back from.
HARMLESS_CLOSES: Final = frozenset({1006, 1012, 1013, 4008})
MAX_EXAMPLES: Final = 5
"""Of each kind."""
# What is told of a loss: so many notes of the tab before and after it, and remarks before it.
NOTES_AROUND: Final = 3
REMARKS_BEFORE: Final = 4


@dataclass(slots=True)
class Figures:
    """Of all tabs together, save for what was published."""

    published: int = 0
    """With a receipt."""
    uncertain: Counter[str] = field(default_factory=Counter)
    """Attempts without a receipt, by kind of error."""
    delivered: int = 0
    duplicated: int = 0
    out_of_order: int = 0
    lost: int = 0
    """Without notice: neither received nor announced."""
    forgotten: int = 0
    """Acknowledged by a Redis that then went back, and neither received nor announced."""
    resyncs: Counter[str] = field(default_factory=Counter)
    """Announcements to v1 tabs by reason; `first_cursor` is a first id after a reconnect."""
    closes: Counter[int] = field(default_factory=Counter)
    breaches: list[str] = field(default_factory=list)
    """Of the protocol."""
    losses: list[str] = field(default_factory=list)
    """Some of what was lost, with what the ledger has around it."""
    examples: list[str] = field(default_factory=list)
    """Some of what was forgotten."""

    def __str__(self) -> str:
        lines = [f"{name:<24}{text}" for name, text in self.counts().items()]
        return "\n".join([*lines, *self.breaches, *self.losses, *self.examples])

    def counts(self) -> dict[str, str]:
        """By what a person would call each."""
        return {
            "published": str(self.published),
            "uncertain attempts": _counted(self.uncertain),
            "delivered": str(self.delivered),
            "duplicated": str(self.duplicated),
            "out of order": str(self.out_of_order),
            "lost without notice": str(self.lost),
            "forgotten by Redis": str(self.forgotten),
            "resyncs announced": _counted(self.resyncs),
            "connections closed": _counted(self.closes),
            "breaches of protocol": str(len(self.breaches)),
        }

    @property
    def flawless(self) -> bool:
        """Whether nothing happened that must not; `forgotten` is Redis' doing."""
        return not (
            self.duplicated
            or self.out_of_order
            or self.lost
            or self.breaches
            or self.closes.keys() - HARMLESS_CLOSES
        )

    @property
    def nobody_noticed(self) -> bool:
        """Whether tabs got everything over connections that were never closed."""
        return self.flawless and not (self.forgotten or self.resyncs or self.closes)

    @property
    def nothing_missing(self) -> bool:
        """Whether tabs got everything, if over several connections."""
        return self.flawless and not (self.forgotten or self.resyncs)


def audit(ledger: Ledger) -> Figures:
    """Judge what is in the ledger; meant for a time at which every tab is even."""
    figures = Figures(uncertain=ledger.errors.copy())
    by_user: dict[str, list[Publication]] = {}
    for publication in ledger.publications.values():
        figures.published += publication.id is not None
        by_user.setdefault(publication.user, []).append(publication)
    for user, tabs in _by_user(ledger.tabs).items():
        publications = by_user.get(user, [])
        chains = _Chains(publications, tabs)
        for tab in tabs:
            _TabAudit(tab, publications, chains, ledger.remarks, figures).run()
    return figures


def _by_user(tabs: Sequence[TabHistory]) -> dict[str, list[TabHistory]]:
    by_user: dict[str, list[TabHistory]] = {}
    for tab in tabs:
        by_user.setdefault(tab.user, []).append(tab)
    return by_user


class _Chains:
    """What receipts and all tabs of one user tell of the chains that Redis has had for it."""

    def __init__(self, publications: Sequence[Publication], tabs: Sequence[TabHistory]) -> None:
        self._prev: dict[str, str | None] = {}
        # From when on each was there for certain: Redis may have had it long before.
        self._known_at: dict[str, Moment] = {}
        for publication in publications:
            if publication.id is not None and publication.ended is not None:
                self._know(publication.id, publication.ended)
        for tab in tabs:
            for note in tab.notes:
                match note:
                    case Received():
                        self._prev[note.id] = note.prev
                        self._know(note.id, note.at)
                        self._know(note.prev, note.at)
                    case Welcomed() | Resynced():
                        self._know(note.cursor, note.at)

    def _know(self, id_: str | None, at: Moment) -> None:
        if id_ is not None:
            self._known_at[id_] = min(at, self._known_at.get(id_, at))

    def lack(self, publication: Publication, later: str) -> bool:
        """Whether the chain that `later` ends has no place for what was published before it.

        In a chain, what is published later has a higher offset, and each offset is given once.
        """
        offset = _offset(publication.id)
        if _offset(later) <= offset:
            return True
        link: str | None = later
        while link is not None and _offset(link) > offset:
            if self._known_at[link] < publication.began:
                return True
            link = self._prev.get(link)
        return link is not None and link != publication.id and _offset(link) == offset


class _TabAudit:
    """Goes through one tab's notes, then looks for what is in none of them."""

    def __init__(
        self,
        tab: TabHistory,
        publications: Sequence[Publication],
        chains: _Chains,
        remarks: Sequence[Remark],
        figures: Figures,
    ) -> None:
        self._tab = tab
        self._publications = publications
        self._chains = chains
        self._remarks = remarks
        self._by_key = {publication.key: publication for publication in publications}
        self._figures = figures
        # Where the tab stands; meaningless while it may go on anywhere.
        self._position: str | None = None
        self._may_go_on_anywhere = True
        self._is_admitted = False
        self._owes_resync = False
        self._ids: set[str] = set()
        self._keys: set[str] = set()
        # Both ends of each hole in the chain, as offsets.
        self._holes: list[tuple[int, int]] = []
        self._told_at: list[Moment] = []

    def run(self) -> None:
        for note in self._tab.notes:
            if self._owes_resync and not isinstance(note, Resynced | Closed):
                self._breach("resumed: false without a resync")
            match note:
                case Opened():
                    self._is_admitted = True
                    self._told(note.at)
                    self._may_go_on_anywhere = True
                case Welcomed():
                    self._welcomed(note)
                case Resynced():
                    self._owes_resync = False
                    self._figures.resyncs[note.reason] += 1
                    self._go_on_from(note.cursor, note.at)
                case Received():
                    self._received(note)
                case Closed():
                    self._is_admitted = self._owes_resync = False
                    self._figures.closes[note.code] += 1
                    if self._tab.is_plain:
                        self._told(note.at)
        self._look_for_missing()

    def _told(self, at: Moment) -> None:
        self._told_at.append(at)
        # Redis may have lost a key with the rest: its publisher then publishes it once more.
        self._keys.clear()

    def _go_on_from(self, cursor: str | None, at: Moment) -> None:
        self._told(at)
        self._position = cursor
        self._may_go_on_anywhere = False

    def _welcomed(self, note: Welcomed) -> None:
        self._is_admitted = True
        is_first = self._may_go_on_anywhere
        if note.given is None:
            if note.resumed is not None:
                self._breach("resumed without a cursor")
            if is_first:
                self._go_on_from(note.cursor, note.at)
            elif note.cursor is not None:
                self._figures.resyncs["first_cursor"] += 1
                self._go_on_from(note.cursor, note.at)
        elif note.resumed is None:
            self._breach("a cursor was not answered")
        else:
            self._owes_resync = not note.resumed
        if not is_first and note.given != self._position and note.given is not None:
            self._breach(f"the tab stood at {self._position} and asked for {note.given}")

    def _breach(self, what: str) -> None:
        self._figures.breaches.append(f"{self._tab.name}: {what}")

    def _received(self, note: Received) -> None:
        if not self._is_admitted:
            self._breach("a notification before the welcome")
        self._figures.delivered += 1
        position, self._position = self._position, note.id
        may_go_on_anywhere, self._may_go_on_anywhere = self._may_go_on_anywhere, False
        if note.id in self._ids or note.key in self._keys:
            self._figures.duplicated += 1
        elif not may_go_on_anywhere and note.prev != position:
            before = _offset(position)
            if _offset(note.id) <= before:
                self._figures.out_of_order += 1
            else:
                # At least one: the same offset can belong to two chains.
                self._figures.lost += max(1, _offset(note.id) - before - 1)
                self._holes.append((before, _offset(note.id)))
                self._explain_loss(f"stood at {position} when {note.id} came", note.at)
        self._ids.add(note.id)
        self._keys.add(note.key)

    def _look_for_missing(self) -> None:
        received = [note for note in self._tab.notes if isinstance(note, Received)]
        moments = [note.at for note in received]
        # Two masters may each have carried out an attempt: under either id it is the same.
        keys = {note.key for note in received}
        for publication in self._publications:
            if publication.id is None or publication.id in self._ids or publication.key in keys:
                continue
            following = self._following(publication, received, moments)
            told_at = self._told_at[bisect_right(self._told_at, publication.began) :][:1]
            is_told = bool(told_at) and (following is None or told_at[0] < following.at)
            offset = _offset(publication.id)
            if is_told or any(first <= offset < last for first, last in self._holes):
                continue
            what = f"{publication.id}, acknowledged at {publication.ended}"
            if following is not None and self._chains.lack(publication, following.id):
                self._figures.forgotten += 1
                self._give_example(f"{what}, is of another chain than {following.id}")
            else:
                self._figures.lost += 1
                self._explain_loss(f"{what}, is missing", publication.began)

    def _following(
        self, publication: Publication, received: Sequence[Received], moments: Sequence[Moment]
    ) -> Received | None:
        """The first that the tab received of those which were certainly published later."""
        for note in received[bisect_right(moments, publication.began) :]:
            later = self._by_key.get(note.key)
            if later is not None and _is_before(publication, later):
                return note
        return None

    def _give_example(self, what: str) -> None:
        if len(self._figures.examples) < MAX_EXAMPLES:
            self._figures.examples.append(f"{self._tab.name}: {what}")

    def _explain_loss(self, what: str, at: Moment) -> None:
        if len(self._figures.losses) == MAX_EXAMPLES:
            return
        notes, remarks = self._tab.notes, self._remarks
        index = bisect_left(notes, at, key=lambda note: note.at)
        last = bisect_right(remarks, at, key=lambda remark: remark.at)
        around = [
            *remarks[max(0, last - REMARKS_BEFORE) : last],
            *notes[max(0, index - NOTES_AROUND) : index + NOTES_AROUND],
        ]
        lines = [f"\n    {entry}" for entry in sorted(around, key=lambda entry: entry.at)]
        self._figures.losses.append(f"{self._tab.name}: {what}{''.join(lines)}")


def _counted(counts: Counter[str] | Counter[int]) -> str:
    each = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    return f"{counts.total()} ({each})" if each else "0"


def _is_before(publication: Publication, other: Publication) -> bool:
    """Whether the one was acknowledged before the other began."""
    return publication.ended is not None and publication.ended < other.began


def _offset(id_: str | None) -> int:
    """0 for the position before the first."""
    return int(id_.partition("-")[0]) if id_ is not None else 0
