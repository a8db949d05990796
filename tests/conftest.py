from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from huleedu_service_libs.redis_server import RedisServer
from tests.service_process import ServiceProcess


@pytest.fixture
async def redis_server() -> AsyncIterator[RedisServer]:
    """A Redis that the test has to itself."""
    async with RedisServer() as server:
        yield server


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[Redis]:
    """A plain client: what any publisher could use."""
    async with Redis(port=redis_server.port) as client:
        yield client


@pytest.fixture
async def service(redis_server: RedisServer) -> AsyncIterator[ServiceProcess]:
    """The service under plain Hypercorn."""
    async with ServiceProcess(redis_server.url) as process:
        yield process
