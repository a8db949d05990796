"""Where `tail` stands in a user's notifications.

What always holds:

1. The cursor names the last notification that was printed. Where none was printed since, it is
   what the service named when it could not or need not resume.
2. What lies between two connections was replayed, or the user is told that it may be missing.
"""

from services.websocket_service.cli.parsing import Frame

_MISSED = "notifications may have been missed"
_UNKNOWN_REASON = "the service can't prove otherwise"
_REASONS = {
    "history_trimmed": "older ones are no longer kept",
    "history_lost": "Redis has lost what it kept",
    "cursor_unknown": "the service does not know the id to go on from",
}


class Position:
    """Fed with the frames of one connection after the other; begins after the id `since`."""

    def __init__(self, since: str | None = None) -> None:
        self._cursor = since
        self._printed: str | None = None
        self._was_welcomed = False

    @property
    def cursor(self) -> str | None:
        """What the next connection asks to resume from; None where nothing has an id yet."""
        return self._cursor

    def welcome(self, frame: Frame) -> str | None:
        """Begin a connection; what its user should know, if anything."""
        is_first, self._was_welcomed = not self._was_welcomed, True
        match frame.get("resumed"):
            case True:
                # The welcome's cursor is the newest id, and the replay is yet to come.
                return "resumed: no durable notification is missing"
            case False:
                # Until its `resync` has arrived, the old cursor makes the next attempt tell again.
                return None
        previous = self._cursor
        self._cursor = _id(frame, "cursor") or previous
        if previous is not None:
            return f"{_MISSED}: the service does not resume"
        if self._cursor is not None and not is_first:
            return f"{_MISSED}: the first ones came while there was no connection"
        return None

    def resync(self, frame: Frame) -> str:
        """Go on behind a gap; what the user should know of it."""
        self._cursor = _id(frame, "cursor")
        reason = str(frame.get("reason"))
        return f"{_MISSED}: {_REASONS.get(reason, _UNKNOWN_REASON)} ({reason})"

    def is_repeated(self, notification: Frame) -> bool:
        """True for the one that was printed last."""
        id_ = _id(notification, "id")
        return id_ is not None and id_ == self._printed

    def advance(self, notification: Frame) -> None:
        """It has been printed; one without an id changes nothing."""
        id_ = _id(notification, "id")
        if id_ is not None:
            self._cursor = self._printed = id_


def _id(frame: Frame, name: str) -> str | None:
    value = frame.get(name)
    return value if isinstance(value, str) and value else None
