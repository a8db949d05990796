"""The Kafka that a test runs against: the mock cluster, or a real one that a variable names."""

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Final, Protocol

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import TopicAlreadyExistsError, UnknownTopicOrPartitionError

from huleedu_service_libs.testing.kafka_broker import KafkaBroker
from huleedu_service_libs.testing.polling import until

SERVERS_VARIABLE: Final = "KAFKA_TEST_BOOTSTRAP_SERVERS"


class KafkaForTests(Protocol):
    """What a test needs of a Kafka whose faults it does not command."""

    bootstrap_servers: str

    async def create_topic(self, name: str, partitions: int = 1) -> None:
        """Create an empty topic."""
        ...


@asynccontextmanager
async def kafka_for_tests() -> AsyncIterator[KafkaForTests]:
    """A `KafkaBroker`, or the brokers that KAFKA_TEST_BOOTSTRAP_SERVERS names.

    A topic that exists on real brokers is deleted with its records when a test creates it, and
    those that were created are deleted at the end: never name brokers that somebody uses.
    """
    servers = os.environ.get(SERVERS_VARIABLE)
    if servers is None:
        async with KafkaBroker() as broker:
            yield broker
        return
    async with AsyncExitStack() as resources:
        admin = AIOKafkaAdminClient(bootstrap_servers=servers)
        await admin.start()
        resources.push_async_callback(admin.close)
        kafka = _RealKafka(servers, admin)
        resources.push_async_callback(kafka.delete_topics)
        yield kafka


class _RealKafka:
    def __init__(self, bootstrap_servers: str, admin: AIOKafkaAdminClient) -> None:
        self.bootstrap_servers = bootstrap_servers
        self._admin = admin
        self._topics: set[str] = set()

    async def create_topic(self, name: str, partitions: int = 1) -> None:
        self._topics.add(name)
        topic = NewTopic(name=name, num_partitions=partitions, replication_factor=1)

        async def is_created() -> bool:
            try:
                await self._admin.create_topics([topic])
            except TopicAlreadyExistsError:  # or its deletion goes on
                await self._delete(name)
                return False
            return True

        await until(is_created)

    async def delete_topics(self) -> None:
        for name in self._topics:
            await self._delete(name)

    async def _delete(self, name: str) -> None:
        with suppress(UnknownTopicOrPartitionError):
            await self._admin.delete_topics([name])
