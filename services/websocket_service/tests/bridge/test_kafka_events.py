"""What the bridge gets to know of a Kafka that goes away."""

import asyncio

import pytest

from huleedu_service_libs.kafka_settings import KafkaConnection
from huleedu_service_libs.testing.kafka_broker import KafkaBroker
from services.websocket_service.bridge.protocols import EventLogError
from services.websocket_service.implementations.kafka_events import (
    KafkaEventLog,
    Subscription,
    joined_group,
)

SUBSCRIPTION = Subscription(topic="events", group="bridges", client_id="bridge-1")


async def nothing() -> None:
    """Before partitions are given up."""


async def asked_again_and_again(log: KafkaEventLog) -> None:
    while True:
        await log.lag()


async def test_a_group_is_left_while_its_broker_is_away() -> None:
    """Whoever leaves then goes on, and is told why it can't join again."""
    async with KafkaBroker() as broker:
        await broker.create_topic("events")
        connection = KafkaConnection(bootstrap_servers=broker.bootstrap_servers)
        async with asyncio.timeout(30):
            async with joined_group(connection, SUBSCRIPTION, nothing) as log:
                while not await log.lag():
                    await log.next_batch()
                await broker.go_away()
                # By the time that a question has failed, fetches have, and pause.
                with pytest.raises(EventLogError):
                    await asked_again_and_again(log)
            with pytest.raises(EventLogError, match=r"reached: \S+ ConnectionRefusedError"):
                async with joined_group(connection, SUBSCRIPTION, nothing):
                    pass
            await broker.come_back()
            async with joined_group(connection, SUBSCRIPTION, nothing) as log:
                while not await log.lag():
                    await log.next_batch()
