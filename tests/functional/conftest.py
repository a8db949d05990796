"""One Redis and one service for all tests of a module: a service of its own costs a second."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_server import RedisServer
from huleedu_service_libs.testing.kafka_broker import KafkaBroker
from tests.gateway_process import COMMANDS_TOPIC
from tests.service_process import ServiceProcess


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def redis_server() -> AsyncIterator[RedisServer]:
    """A Redis that the module has to itself."""
    async with RedisServer() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def redis(redis_server: RedisServer) -> AsyncIterator[Redis]:
    """A plain client: what any publisher could use."""
    async with Redis(port=redis_server.port) as client:
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def publisher(redis_server: RedisServer) -> AsyncIterator[RedisClient]:
    """What a backend service publishes with."""
    async with RedisClient(client_id="result_service", redis_url=redis_server.url) as client:
        yield client


@pytest.fixture
async def kafka() -> AsyncIterator[KafkaBroker]:
    """A Kafka for the gateway's commands that the test has to itself."""
    async with KafkaBroker() as broker:
        await broker.create_topic(COMMANDS_TOPIC)
        yield broker


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(redis_server: RedisServer) -> AsyncIterator[ServiceProcess]:
    """The service under plain Hypercorn, with the default settings."""
    async with ServiceProcess(redis_server.url) as process:
        yield process
