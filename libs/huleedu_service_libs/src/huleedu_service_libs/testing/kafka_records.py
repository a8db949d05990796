"""Records as bytes: what a test puts into a topic, and what it finds there."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from aiokafka.structs import ConsumerRecord

# Only a record that never comes takes so long.
GIVE_UP_AFTER_S: Final = 30.0


async def produce(
    bootstrap_servers: str,
    topic: str,
    value: bytes | None,
    *,
    key: bytes | None = None,
    headers: Sequence[tuple[str, bytes]] = (),
    partition: int | None = None,
) -> None:
    """Append one record, as it is; return once all in-sync replicas have it.

    A record without a value (a tombstone) needs a key. Raises aiokafka's KafkaError.
    """
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap_servers, acks="all")
    try:
        await producer.start()
        await producer.send_and_wait(
            topic, value, key=key, partition=partition, headers=list(headers)
        )
    finally:
        await producer.stop()


class RecordReader:
    """Reads the records of all partitions of a topic, those of each in their order."""

    def __init__(self, consumer: AIOKafkaConsumer) -> None:
        self._consumer = consumer

    async def next(self) -> ConsumerRecord:
        """The next record, as soon as it is there; TimeoutError after `GIVE_UP_AFTER_S` seconds."""
        async with asyncio.timeout(GIVE_UP_AFTER_S):
            return await self._consumer.getone()


@asynccontextmanager
async def record_reader(bootstrap_servers: str, topic: str) -> AsyncIterator[RecordReader]:
    """A reader of its own from the topic's beginning, which belongs to no consumer group."""
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=bootstrap_servers, auto_offset_reset="earliest"
    )
    try:
        await consumer.start()
        yield RecordReader(consumer)
    finally:
        await consumer.stop()
