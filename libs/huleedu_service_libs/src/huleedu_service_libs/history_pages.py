"""What reading a history yields."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from huleedu_service_libs.notification_ids import NotificationId


class Loss(StrEnum):
    """Why nobody can say what followed an id."""

    TRIMMED = "history_trimmed"
    """It is older than what is kept, or the history has expired."""
    LOST = "history_lost"
    """Redis knows nothing of this user any more, or has gone back to an earlier state."""


@dataclass(frozen=True, slots=True)
class KeptNotification:
    """One entry of a history."""

    id: NotificationId
    payload: bytes
    """As it was published."""
    expires_at: datetime | None = None
    """Not replayed from then on; told by `kept` alone."""


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """All that followed an id, or the first part of it, in order.

    Without what has expired, and without what is followed by a newer one of its collapse key.
    """

    newest: NotificationId
    position: NotificationId
    """Where the next page begins."""
    complete: bool
    """True where nothing more follows."""
    entries: tuple[KeptNotification, ...]


@dataclass(frozen=True, slots=True)
class Unproven:
    """What followed an id can't be told."""

    loss: Loss
    newest: NotificationId | None
