"""What lies in a topic, as the bridge reads it and as it sets it aside."""

from dataclasses import dataclass, field

Headers = tuple[tuple[str, bytes | None], ...]


@dataclass(frozen=True, slots=True)
class EventRecord:
    """One record of a Kafka topic."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    """Since 1970, by the producer's clock or the broker's; negative where there is none."""
    key: bytes | None = field(repr=False)
    value: bytes | None = field(repr=False)
    headers: Headers = field(default=(), repr=False)
