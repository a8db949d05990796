"""Where one connection stands in the chain of its user's durable notifications.

What always holds:

1. A notification is handed on only if its predecessor is the one that was handed on last, or if
   the history has proven that nothing lies between.
2. Whatever was handed on out of the history is not handed on again when its live copy comes.
3. `position` names what the client has, or will have with what is queued for it; after a loss,
   from where on it is told everything again.
"""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, NamedTuple

from huleedu_service_libs.history_pages import HistoryPage
from huleedu_service_libs.notification_ids import NotificationId, is_origin, offset_of
from services.websocket_service.frames import ResyncReason

# Beyond it a live copy is looked up in the history instead.
MAX_REMEMBERED_IDS: Final = 1_000


class Link(NamedTuple):
    """A notification's place in the chain; `prev` is None for a user's first."""

    id: NotificationId
    prev: NotificationId | None


@dataclass(frozen=True, slots=True)
class Opening:
    """The answer to a cursor, or to its absence."""

    position: NotificationId
    """From where on continuity is kept: the client's cursor where it can be resumed."""
    newest: NotificationId
    missed: HistoryPage | None = None
    """The first page after the client's cursor, where it can be resumed."""
    resync: ResyncReason | None = None
    """Why it can't."""

    @property
    def resumed(self) -> bool | None:
        """None where the client gave no cursor."""
        if self.missed is None and self.resync is None:
            return None
        return self.missed is not None

    @property
    def cursor(self) -> str | None:
        """The id of the newest notification; None where the user has had none."""
        return None if is_origin(self.newest) else self.newest


class Verdict(Enum):
    """What to do with a live notification."""

    NEXT = auto()
    """It follows: hand it on."""
    SEEN = auto()
    """A copy of what was handed on already: drop it."""
    GAP = auto()
    """Something is missing, or the chain has broken: ask the history."""


class Continuity:
    """Judges live notifications, and learns from what is read of the history."""

    __slots__ = ("_ahead", "_may_see_older", "position")

    def __init__(self, position: NotificationId) -> None:
        self.position = position
        # Handed on out of the history, while their live copies may still be on the way.
        self._ahead: set[NotificationId] = set()
        # Copies of what the position stands for may be on the way.
        self._may_see_older = True

    def judge(self, link: Link) -> Verdict:
        """Moves the position where the verdict is NEXT."""
        if link.prev == self.position or (link.prev is None and is_origin(self.position)):
            self.position = link.id
            self._may_see_older = False
            if self._ahead:
                self._ahead.clear()
            return Verdict.NEXT
        return Verdict.SEEN if self.has_handed_on(link.id) else Verdict.GAP

    def has_handed_on(self, id_: NotificationId) -> bool:
        """Whether it is remembered as handed on, or as behind the position."""
        return id_ == self.position or id_ in self._ahead

    def read(self, page: HistoryPage) -> None:
        """Its entries are handed on now."""
        if page.position == self.position:
            return
        self.position = page.position
        self._may_see_older = True
        if len(self._ahead) + len(page.entries) <= MAX_REMEMBERED_IDS:
            self._ahead.update(entry.id for entry in page.entries)

    def restart(self, newest: NotificationId) -> None:
        """The client is told that notifications may be missing up to `newest`."""
        self.position = newest
        self._may_see_older = True
        self._ahead.clear()

    def may_be_behind(self, link: Link) -> bool:
        """After the history was read to its end: whether this live notification may be no loss.

        It may be collapsed, expired, or from before the position; or of the chain of a master that
        was replaced, in which offsets come again. Anything newer should have been in the history.
        """
        return self._may_see_older and offset_of(link.id) <= offset_of(self.position)

    def look_back(self, page: HistoryPage) -> None:
        """What follows something behind the position: live copies of it may be on the way."""
        offset = offset_of(self.position)
        behind = [entry.id for entry in page.entries if offset_of(entry.id) <= offset]
        if len(self._ahead) + len(behind) <= MAX_REMEMBERED_IDS:
            self._ahead.update(behind)
