"""The seams of the bridge; `di.py` names what stands behind them."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from services.websocket_service.bridge.poison import DeadLetter
from services.websocket_service.bridge.records import EventRecord


class EventLogError(Exception):
    """Kafka does not answer, or refuses; the message says what."""


class DeadLetterError(Exception):
    """The dead letter was not confirmed; it may be in its topic nevertheless."""


class DeadLetterTooLargeError(DeadLetterError):
    """No attempt can bring this record into the topic."""


class EventLogProtocol(Protocol):
    """A member of the consumer group. Every method raises EventLogError."""

    async def next_batch(self) -> Mapping[int, Sequence[EventRecord]]:
        """What has come, by partition, in the order of its offsets; after a while nothing.

        It has to be called every few minutes, or the group goes on without this member. After an
        EventLogError the member is of no use: what it had read may not come again.
        """
        ...

    async def commit(self, offsets: Mapping[int, int]) -> None:
        """Where the group goes on, by partition; those that are not this member's are left out."""
        ...

    def rewind(self, offsets: Mapping[int, int]) -> None:
        """The offsets that are to come next, by partition, of those that are this member's."""
        ...

    async def lag(self) -> Mapping[int, int] | None:
        """How many records are yet to come, by partition of this member: Kafka is asked now.

        None while the group has not let this member in.
        """
        ...


JoinGroup = Callable[[Callable[[], Awaitable[None]]], AbstractAsyncContextManager[EventLogProtocol]]
"""Joins the group for a block. What it is given is awaited before partitions are given away.

Entering raises EventLogError. Leaving takes a moment, also while Kafka does not answer.
"""


class DeadLettersProtocol(Protocol):
    """The dead-letter topic."""

    async def send(self, letter: DeadLetter) -> None:
        """Return once all in-sync replicas have it. Raises DeadLetterError."""
        ...
