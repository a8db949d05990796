"""What was published, and what each tab was told, in the order in which this process saw it.

A `Moment` is a number that grows with each entry. Publishers and tabs live in one process, so of
two moments it is certain which came first.
"""

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, NewType

Moment = NewType("Moment", int)

GIVE_UP_AFTER_S: Final = 40


@dataclass(slots=True, eq=False)
class Publication:
    """One notification for one user, however many attempts it took; `key` is its own."""

    user: str
    key: str
    began: Moment
    """Before the first attempt: it can't have been published earlier."""
    id: str | None = None
    """Of the receipt."""
    ended: Moment | None = None
    """At the receipt: it can't have been published later."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A plain tab sees its connection open."""

    at: Moment


@dataclass(frozen=True, slots=True)
class Welcomed:
    """The first frame of the v1 dialect; `given` is the cursor in the request."""

    at: Moment
    given: str | None
    cursor: str | None
    resumed: bool | None


@dataclass(frozen=True, slots=True)
class Received:
    """A notification."""

    at: Moment
    id: str
    prev: str | None
    key: str


@dataclass(frozen=True, slots=True)
class Resynced:
    """Notifications up to `cursor` may be missing."""

    at: Moment
    reason: str
    cursor: str | None


@dataclass(frozen=True, slots=True)
class Closed:
    """The end of a connection; 1006 without a close frame."""

    at: Moment
    code: int


@dataclass(frozen=True, slots=True)
class Remark:
    """Something else that a reader of the ledger wants to know of, a fault for example."""

    at: Moment
    text: str


Note = Opened | Welcomed | Received | Resynced | Closed


@dataclass(slots=True, eq=False)
class TabHistory:
    """All that one tab was told, over all its connections."""

    name: str
    user: str
    is_plain: bool
    notes: list[Note] = field(default_factory=list)
    is_open: bool = False
    newest_began: Moment = Moment(0)
    """The latest beginning of a publication that it has received."""
    resynced_at: Moment = Moment(0)
    """When it was last told that something may be missing; for a plain tab, when it opened."""
    position: str | None = None
    """The id that it was told of last, by a notification or otherwise."""

    def __str__(self) -> str:
        state = "open" if self.is_open else "not connected"
        return f"{self.name}: {state}, at {self.position}, {len(self.notes)} notes"

    def was_told(self, since: Moment) -> bool:
        """Whether it was told since then that something may be missing."""
        notice = Closed if self.is_plain else Resynced
        return any(isinstance(note, notice) and note.at > since for note in self.notes)


class Ledger:
    """Written by publishers and tabs; `audit` reads it."""

    def __init__(self) -> None:
        self.publications: dict[str, Publication] = {}
        self.tabs: list[TabHistory] = []
        self.remarks: list[Remark] = []
        self.receipts: Counter[str] = Counter()
        """By user, as the next."""
        self.uncertain_attempts: Counter[str] = Counter()
        self.attempts: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        """Of the uncertain attempts, by kind."""
        self._moments: Iterator[int] = itertools.count(1)
        self._waiting: dict[asyncio.Future[None], Callable[[], bool]] = {}

    def now(self) -> Moment:
        """After all that was noted so far, before all that will be."""
        return Moment(next(self._moments))

    def tab(self, name: str, user: str, *, is_plain: bool = False) -> TabHistory:
        """Begin the history of a tab."""
        tab = TabHistory(name, user, is_plain)
        self.tabs.append(tab)
        return tab

    def remark(self, text: str) -> None:
        """Note what happens beside publications and tabs."""
        self.remarks.append(Remark(self.now(), text))

    def begin(self, user: str, key: str) -> Publication:
        """Before the first attempt to publish."""
        publication = self.publications[key] = Publication(user, key, self.now())
        return publication

    def receipt(self, publication: Publication, id_: str) -> None:
        """Redis has acknowledged it."""
        publication.id, publication.ended = id_, self.now()
        self.receipts[publication.user] += 1
        self.attempts[publication.user] += 1
        self._noted()

    def uncertain(self, publication: Publication, error: Exception) -> None:
        """An attempt failed: for all that the publisher knows, Redis may have carried it out."""
        self.uncertain_attempts[publication.user] += 1
        self.errors[type(error).__name__] += 1
        self.attempts[publication.user] += 1
        self._noted()

    def opened(self, tab: TabHistory) -> None:
        """A plain tab gets what is published from now on."""
        note = Opened(self.now())
        tab.is_open = True
        tab.resynced_at = note.at
        self._note(tab, note)

    def welcomed(
        self, tab: TabHistory, given: str | None, cursor: str | None, *, resumed: bool | None
    ) -> None:
        """A v1 tab is admitted."""
        note = Welcomed(self.now(), given, cursor, resumed)
        tab.is_open = True
        if given is None:
            tab.position = cursor
            if cursor is not None:
                tab.resynced_at = note.at
        self._note(tab, note)

    def received(self, tab: TabHistory, id_: str, prev: str | None, key: str) -> None:
        """A tab has handled a notification."""
        tab.position = id_
        if key in self.publications:
            tab.newest_began = max(tab.newest_began, self.publications[key].began)
        self._note(tab, Received(self.now(), id_, prev, key))

    def resynced(self, tab: TabHistory, reason: str, cursor: str | None) -> None:
        """A v1 tab was told that notifications may be missing."""
        note = Resynced(self.now(), reason, cursor)
        tab.position, tab.resynced_at = cursor, note.at
        self._note(tab, note)

    def closed(self, tab: TabHistory, code: int) -> None:
        """A tab's connection has ended."""
        tab.is_open = False
        self._note(tab, Closed(self.now(), code))

    def _note(self, tab: TabHistory, note: Note) -> None:
        tab.notes.append(note)
        self._noted()

    def _noted(self) -> None:
        for waiter, holds in self._waiting.items():
            if not waiter.done() and holds():
                waiter.set_result(None)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Return once what is noted here makes `holds` true; raises TimeoutError if nothing does.

        It is asked again after each entry.
        """
        if holds():
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[waiter] = holds
        try:
            async with asyncio.timeout(GIVE_UP_AFTER_S):
                await waiter
        except TimeoutError:
            raise TimeoutError(
                f"receipts {dict(self.receipts)}, errors {dict(self.errors)}\n"
                + "\n".join(map(str, self.tabs))
            ) from None
        finally:
            del self._waiting[waiter]

    def is_even(self, tab: TabHistory, last: Publication) -> bool:
        """Whether the tab has the publication, or was told of a gap that it may have been in."""
        return tab.is_open and (
            tab.position == last.id
            or tab.newest_began >= last.began
            or (last.ended is not None and tab.resynced_at > last.ended)
        )
