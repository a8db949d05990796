"""Why an event is set aside, and the record that it is set aside as."""

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from services.websocket_service.bridge.records import EventRecord, Headers

_PREFIX: Final = "dead-letter-"


class PoisonReason(StrEnum):
    """What would be the same at every further attempt."""

    TOMBSTONE = "tombstone"
    """A record without a value."""
    NOT_JSON = "not_json"
    INVALID_EVENT = "invalid_event"
    """JSON, but no envelope with a request to notify a teacher in it."""
    UNPUBLISHABLE = "unpublishable"
    """Refused before it was sent to Redis: too large, or nothing that JSON in UTF-8 can hold."""
    TOO_OLD = "too_old"
    """Idempotency keys of its time are forgotten: nobody can tell whether it has been shown."""


@dataclass(frozen=True, slots=True)
class Poison:
    """An event that no attempt can publish."""

    reason: PoisonReason
    detail: str
    """A sentence without any of the event's content."""
    correlation_id: str | None = None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record for the dead-letter topic."""

    key: bytes | None = field(repr=False)
    value: bytes | None = field(repr=False)
    headers: Headers = field(repr=False)

    def without_content(self) -> "DeadLetter":
        """The same for a broker that takes no record of this size: only what is said about it.

        The original still lies where the headers say, for as long as its topic keeps it.
        """
        ours = tuple((name, value) for name, value in self.headers if name.startswith(_PREFIX))
        omitted = (f"{_PREFIX}omitted", b"key, value and headers: too large for this topic")
        return replace(self, key=None, value=None, headers=(*ours, omitted))


def dead_letter(record: EventRecord, poison: Poison) -> DeadLetter:
    """The record as it was, with headers that say why it is here and where it came from.

    `dead-letter-reason` is a `PoisonReason`, `-detail` a sentence; `-topic`, `-partition`,
    `-offset` and `-timestamp` (milliseconds since 1970) are the original's. Those of an earlier
    stay in such a topic are replaced.
    """
    said = {
        "reason": poison.reason.value,
        "detail": poison.detail,
        "topic": record.topic,
        "partition": str(record.partition),
        "offset": str(record.offset),
        "timestamp": str(record.timestamp_ms),
    }
    theirs = (header for header in record.headers if not header[0].startswith(_PREFIX))
    ours = ((f"{_PREFIX}{name}", text.encode()) for name, text in said.items())
    return DeadLetter(record.key, record.value, (*theirs, *ours))
