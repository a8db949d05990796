"""A topic and its group in memory, and what stands at the bridge's other end."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

from huleedu_service_libs.notification_ids import NotificationId
from huleedu_service_libs.notifications import Notification, NotificationReceipt
from services.websocket_service.bridge.poison import DeadLetter
from services.websocket_service.bridge.protocols import DeadLetterError, EventLogError
from services.websocket_service.bridge.records import EventRecord
from services.websocket_service.internal_api.protocols import Outcome
from services.websocket_service.protocols import BackplaneUnavailableError

NOW_MS = 1_700_000_000_000


class MemoryTopic:
    """Records by partition, and how far the group has come; wakes who waits for a change."""

    def __init__(self, partitions: int = 1) -> None:
        self.records: dict[int, list[EventRecord]] = {n: [] for n in range(partitions)}
        self.committed = dict.fromkeys(self.records, 0)
        self.commits: list[Mapping[int, int]] = []
        self.in_turns = False
        """Whether a batch is of one partition, another each time."""
        self.joins = 0
        self.revoke: Callable[[], Awaitable[None]] | None = None
        self.refuse_to_join: deque[str] = deque()
        self.refuse_to_read: deque[str] = deque()
        self.refuse_to_commit: deque[str] = deque()
        self.refuse_to_answer: deque[str] = deque()
        self.changed = asyncio.Condition()

    async def append(self, value: bytes | None, partition: int = 0, age_s: float = 0) -> None:
        """One more record, so old by now."""
        records = self.records[partition]
        records.append(
            EventRecord(
                topic="topic",
                partition=partition,
                offset=len(records),
                timestamp_ms=round(NOW_MS - age_s * 1000),
                key=b"key",
                value=value,
            )
        )
        await self.wake()

    async def wake(self) -> None:
        """Let who waits look again."""
        async with self.changed:
            self.changed.notify_all()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return once it holds."""
        async with asyncio.timeout(20), self.changed:
            await self.changed.wait_for(condition)

    @asynccontextmanager
    async def join(self, revoke: Callable[[], Awaitable[None]]) -> AsyncIterator["MemoryLog"]:
        """A `JoinGroup`."""
        self.joins += 1
        await self.wake()
        _raise_next(self.refuse_to_join)
        self.revoke = revoke
        yield MemoryLog(self)


class MemoryLog:
    """An `EventLogProtocol` for a member to whom all partitions belong."""

    def __init__(self, topic: MemoryTopic) -> None:
        self._topic = topic
        self._positions = dict(topic.committed)
        self._turn = -1

    async def next_batch(self) -> Mapping[int, Sequence[EventRecord]]:
        _raise_next(self._topic.refuse_to_read)
        if not any(self._waiting().values()):
            try:
                async with asyncio.timeout(0.01), self._topic.changed:
                    await self._topic.changed.wait()
            except TimeoutError:
                return {}
        batch = {partition: records for partition, records in self._waiting().items() if records}
        if self._topic.in_turns:
            turn = next((partition for partition in batch if partition > self._turn), min(batch))
            batch, self._turn = {turn: batch[turn]}, turn
        self._positions |= {
            partition: records[-1].offset + 1 for partition, records in batch.items()
        }
        return batch

    def _waiting(self) -> dict[int, list[EventRecord]]:
        return {
            partition: records[self._positions[partition] :]
            for partition, records in self._topic.records.items()
        }

    async def commit(self, offsets: Mapping[int, int]) -> None:
        _raise_next(self._topic.refuse_to_commit)
        self._topic.committed |= offsets
        self._topic.commits.append(dict(offsets))
        await self._topic.wake()

    def rewind(self, offsets: Mapping[int, int]) -> None:
        self._positions |= offsets

    async def lag(self) -> Mapping[int, int] | None:
        _raise_next(self._topic.refuse_to_answer)
        await self._topic.wake()
        return {partition: len(records) for partition, records in self._waiting().items()}


class MemoryPublisher:
    """A `PublisherProtocol` that knows its idempotency keys."""

    def __init__(self) -> None:
        self.published: list[Notification] = []
        self.fail_from: deque[int] = deque()
        """For each of the next calls the first notification that fails."""
        self.raise_next: Exception | None = None
        self.held: asyncio.Event | None = None
        self.entered = asyncio.Event()
        self._keys: set[str | None] = set()

    async def publish_each(self, notifications: Sequence[Notification]) -> Sequence[Outcome]:
        self.entered.set()
        if self.raise_next is not None:
            error, self.raise_next = self.raise_next, None
            raise error
        if self.held is not None:
            await self.held.wait()
        good = self.fail_from.popleft() if self.fail_from else len(notifications)
        outcomes: list[Outcome] = []
        for notification in notifications[:good]:
            duplicate = notification.idempotency_key in self._keys
            outcomes.append(NotificationReceipt(NotificationId("1-1"), 1, duplicate=duplicate))
            if not duplicate:
                self._keys.add(notification.idempotency_key)
                self.published.append(notification)
        failed = [BackplaneUnavailableError("Redis is away") for _ in notifications[good:]]
        return [*outcomes, *failed]

    def numbers(self) -> list[int]:
        """By which the events that were published are told apart."""
        return [notification.data["n"] for notification in self.published]


class MemoryDeadLetters:
    """A `DeadLettersProtocol`."""

    def __init__(self) -> None:
        self.letters: list[DeadLetter] = []
        self.refuse: deque[DeadLetterError] = deque()

    async def send(self, letter: DeadLetter) -> None:
        if self.refuse:
            raise self.refuse.popleft()
        self.letters.append(letter)


def _raise_next(refusals: deque[str]) -> None:
    if refusals:
        raise EventLogError(refusals.popleft())
