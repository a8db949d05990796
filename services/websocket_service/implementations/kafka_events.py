"""The topic of events over aiokafka, as one member of a consumer group."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Final

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaConnectionError, KafkaError

from huleedu_service_libs.kafka_reachability import why_unreachable
from huleedu_service_libs.kafka_settings import KafkaConnection
from huleedu_service_libs.logging_utils import create_service_logger
from services.websocket_service.bridge.protocols import EventLogError
from services.websocket_service.bridge.records import EventRecord

logger = create_service_logger(__name__)

# All of a batch is parsed before anything else of this process gets its turn.
MAX_BATCH_RECORDS: Final = 100
POLL_INTERVAL_S: Final = 0.5
POLL_TIMEOUT_S: Final = 1.5
JOIN_TIMEOUT_S: Final = 10.0
ANSWER_TIMEOUT_S: Final = 2.0
LEAVE_TIMEOUT_S: Final = 0.5
_OPTIONS: Final = {
    "auto_offset_reset": "earliest",
    "enable_auto_commit": False,
    # What a producer has taken back was never said.
    "isolation_level": "read_committed",
    # A topic that is not there yet, and partitions that are added, are seen after so long.
    "metadata_max_age_ms": 5_000,
    # The shortest that a broker allows by default: so long a killed bridge keeps its partitions.
    "session_timeout_ms": 6_000,
    "heartbeat_interval_ms": 2_000,
    # Longer than the group waits for its slowest member.
    "request_timeout_ms": 10_000,
}


@dataclass(frozen=True, slots=True)
class Subscription:
    """Who reads what."""

    topic: str
    group: str
    client_id: str


@asynccontextmanager
async def joined_group(
    connection: KafkaConnection,
    subscription: Subscription,
    before_revocation: Callable[[], Awaitable[None]],
) -> AsyncIterator["KafkaEventLog"]:
    """Join for the block: a `JoinGroup`, once the first two are given."""
    with _failures("Kafka can't be reached"):
        consumer = _Consumer(
            group_id=subscription.group,
            client_id=subscription.client_id,
            **connection.client_options(),
            **_OPTIONS,
        )
    membership = _Membership(before_revocation)
    log = KafkaEventLog(consumer, subscription.topic, membership)
    try:
        with _failures("Kafka can't be reached"):
            try:
                async with asyncio.timeout(JOIN_TIMEOUT_S):
                    await consumer.start()
            except KafkaConnectionError as error:
                reason = await why_unreachable(connection, timeout_s=ANSWER_TIMEOUT_S)
                raise EventLogError(f"Kafka can't be reached: {reason or error}") from error
        consumer.subscribe([subscription.topic], listener=membership)
        yield log
    finally:
        await consumer.leave()
        await log.aclose()


class KafkaEventLog:
    """An `EventLogProtocol`."""

    def __init__(self, consumer: AIOKafkaConsumer, topic: str, membership: "_Membership") -> None:
        self._consumer = consumer
        self._topic = topic
        self._membership = membership
        self._committing: asyncio.Task[None] | None = None

    async def next_batch(self) -> Mapping[int, Sequence[EventRecord]]:
        with _failures("reading failed"):
            try:
                async with asyncio.timeout(POLL_TIMEOUT_S):
                    batch = await self._consumer.getmany(
                        timeout_ms=round(POLL_INTERVAL_S * 1000), max_records=MAX_BATCH_RECORDS
                    )
            except TimeoutError:
                # The group is giving out partitions; nothing was taken yet.
                return {}
        return {
            partition.partition: [_event_record(record) for record in records]
            for partition, records in batch.items()
        }

    async def commit(self, offsets: Mapping[int, int]) -> None:
        if self._committing is not None and not self._committing.done():
            raise EventLogError("a commit is not answered")
        # It is not cancelled where it takes too long: what it has begun would fail unheard.
        self._committing = asyncio.create_task(self._consumer.commit(self._ours(offsets)))
        self._committing.add_done_callback(_take_note)
        await asyncio.wait({self._committing}, timeout=ANSWER_TIMEOUT_S)
        if not self._committing.done():
            raise EventLogError("a commit is not answered")
        with _failures("the commit failed"):
            try:
                self._committing.result()
            except CommitFailedError as error:
                # Its own message is a page on how to write consumers.
                raise EventLogError("the group gives its partitions out anew") from error

    async def aclose(self) -> None:
        """End what waits for an answer that can't come any more."""
        if self._committing is not None:
            self._committing.cancel()
            await asyncio.gather(self._committing, return_exceptions=True)

    def rewind(self, offsets: Mapping[int, int]) -> None:
        with _failures("going back failed"):
            for partition, offset in self._ours(offsets).items():
                self._consumer.seek(partition, offset)

    async def lag(self) -> Mapping[int, int] | None:
        if not self._membership.begun:
            return None
        with _failures("Kafka does not answer"):
            partitions = self._consumer.assignment()
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                if not partitions:
                    if self._topic not in await self._consumer.topics():
                        raise EventLogError(f"the topic {self._topic} does not exist")
                    return {}
                ends = await self._consumer.end_offsets(partitions)
                try:
                    return {
                        partition.partition: max(0, end - await self._consumer.position(partition))
                        for partition, end in ends.items()
                    }
                except IllegalStateError:
                    # Kafka has answered; one of them was given away in the meantime.
                    return {}

    def _ours(self, offsets: Mapping[int, int]) -> dict[TopicPartition, int]:
        assigned = self._consumer.assignment()
        named = {TopicPartition(self._topic, number): offset for number, offset in offsets.items()}
        return {partition: offset for partition, offset in named.items() if partition in assigned}


class _Membership(ConsumerRebalanceListener):
    def __init__(self, before_revocation: Callable[[], Awaitable[None]]) -> None:
        self._before_revocation = before_revocation
        self.begun = False
        """Whether partitions were given out to us once, be it none."""

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        if revoked:
            await self._before_revocation()

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        self.begun = True
        logger.info("partitions to read", partitions=sorted(p.partition for p in assigned))


class _Consumer(AIOKafkaConsumer):
    async def leave(self) -> None:
        """Leave the group and close; without the group's knowledge where it does not answer.

        `stop()` waits for the answer before it closes anything. In a task of its own, because a
        fetch that it cancels while that pauses after a failure cancels it as well.
        """
        stopping = asyncio.create_task(self.stop(), name="kafka-leave")
        await asyncio.wait({stopping}, timeout=LEAVE_TIMEOUT_S)
        if stopping.done() and not stopping.cancelled():
            stopping.result()
            return
        stopping.cancel()
        await asyncio.wait({stopping})
        # Its own, by way of this class; there is no public way to close without a goodbye.
        await self._coordinator._stop_heartbeat_task()  # noqa: SLF001
        await self._coordinator._stop_commit_offsets_refresh_task()  # noqa: SLF001
        await asyncio.gather(self._fetcher.close(), return_exceptions=True)
        fetches = self._fetcher._pending_tasks  # noqa: SLF001
        for fetch in fetches:
            fetch.cancel()
        await asyncio.gather(*fetches, return_exceptions=True)
        await self._client.close()


def _take_note(commit: asyncio.Task[None]) -> None:
    # An answer that comes too late must not be reported as an error that nobody looked at.
    if not commit.cancelled():
        commit.exception()


def _event_record(record: ConsumerRecord) -> EventRecord:
    return EventRecord(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        timestamp_ms=record.timestamp,
        key=record.key,
        value=record.value,
        headers=tuple(record.headers),
    )


@contextmanager
def _failures(what: str) -> Iterator[None]:
    try:
        yield
    except (KafkaError, OSError, TimeoutError, ValueError) as error:
        raise EventLogError(f"{what}: {str(error) or type(error).__name__}") from error
