"""What the bridge has done and how it stands, for metrics and probes."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Result(StrEnum):
    """What became of an event."""

    PUBLISHED = "published"
    DUPLICATE = "duplicate"
    """Its idempotency key was there before: it has been published already."""
    DEAD_LETTERED = "dead_lettered"


class Stage(StrEnum):
    """Where something failed that is tried again."""

    FETCH = "fetch"
    PUBLISH = "publish"
    DEAD_LETTER = "dead_letter"
    COMMIT = "commit"


@dataclass(frozen=True, slots=True)
class BridgeStatistics:
    """A snapshot."""

    events: Mapping[Result, int]
    failures: Mapping[Stage, int]
    kafka_heard: bool
    lag: int
    """Events that wait, in the partitions of this process, when Kafka was last heard."""
    partitions: int
    """Of this process; 0 while it belongs to no group."""


class BridgeCounts:
    """Counts; all of a process's bridge share one."""

    def __init__(self) -> None:
        self.events: Counter[Result] = Counter(dict.fromkeys(Result, 0))
        self.failures: Counter[Stage] = Counter(dict.fromkeys(Stage, 0))
