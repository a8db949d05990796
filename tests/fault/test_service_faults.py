"""The service goes away under traffic: its tabs come back to it, or to another process of it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from huleedu_service_libs.redis_server import RedisServer
from tests.fault.durability import DURABLE
from tests.fault.endpoints import Endpoints
from tests.fault.traffic import Traffic, traffic


@asynccontextmanager
async def served(
    redis_server: RedisServer, *, processes: int
) -> AsyncIterator[tuple[Endpoints, Traffic]]:
    """Several processes of the service, and traffic through all of them."""
    async with Endpoints(redis_server.url) as endpoints:
        for _ in range(processes):
            await endpoints.add()
        async with traffic(redis_server.url, endpoints.url) as going:
            yield endpoints, going


async def test_service_killed(redis_server: RedisServer) -> None:
    """Tabs of a service that was killed resume where they were, once there is another."""
    async with served(redis_server, processes=1) as (endpoints, going):
        for _ in range(2):
            await endpoints.kill(endpoints.running[0])
            await going.is_acknowledged(20)
            await endpoints.add()
            await going.flows()
        figures = await going.finish()
        assert figures.closes[1006] >= 2 * len(going.ledger.tabs), str(figures)
        assert figures.nothing_missing, str(figures)


async def test_rolling_restart(redis_server: RedisServer) -> None:
    """Tabs of a process that is told to end go on at the next one and miss nothing."""
    async with served(redis_server, processes=2) as (endpoints, going):
        for _ in range(2):
            await endpoints.terminate(endpoints.running[0])
            await going.flows()
            await endpoints.add()
        figures = await going.finish()
        assert figures.closes.keys() == {1012}, str(figures)
        assert figures.nothing_missing, str(figures)


async def test_redis_killed_while_the_service_restarts() -> None:
    """Two faults at once, of a Redis that keeps what it acknowledges: tabs miss nothing."""
    async with (
        RedisServer(options=DURABLE) as redis_server,
        served(redis_server, processes=1) as (endpoints, going),
    ):
        await endpoints.kill(endpoints.running[0])
        await going.is_acknowledged(10)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(endpoints.add())
            await redis_server.kill()
            await going.is_uncertain()
            await redis_server.launch()
        await going.flows()
        figures = await going.finish()
        assert figures.nothing_missing, str(figures)
