"""What clients and operators see while Redis is away, and once it is back."""

import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
from redis.asyncio import Redis
from websockets.asyncio.client import ClientConnection

from huleedu_service_libs.redis_server import RedisServer
from tests.fault.peers import (
    V1,
    assert_come_back_later,
    assert_nothing_went_wrong,
    ending,
    until,
)
from tests.service_process import ServiceProcess, free_port

PROBES = ("/readyz", "/healthz/redis")


@asynccontextmanager
async def killed(server: RedisServer) -> AsyncIterator[None]:
    """It says farewell to nobody, and comes back empty on the same port."""
    await server.kill()
    yield
    await server.launch()


@asynccontextmanager
async def hung(server: RedisServer) -> AsyncIterator[None]:
    """Its connections stay open, but nothing comes over them."""
    server.signal(signal.SIGSTOP)
    yield
    server.signal(signal.SIGCONT)


@asynccontextmanager
async def full(server: RedisServer) -> AsyncIterator[None]:
    """It takes no more connections, and has lost the one for subscriptions."""
    async with Redis(port=server.port, single_connection_client=True) as redis:
        limit = (await redis.config_get("maxclients"))["maxclients"] or 0
        await redis.config_set("maxclients", 1)
        await redis.client_kill_filter(skipme=True)
        yield
        await redis.config_set("maxclients", limit)


@pytest.mark.parametrize("outage", [killed, hung, full])
async def test_outage(
    service: ServiceProcess,
    redis_server: RedisServer,
    outage: Callable[[RedisServer], AbstractAsyncContextManager[None]],
) -> None:
    """Open tabs outlive an outage of Redis; new ones are told to come back later."""
    async with (
        service.connect("old") as plain,
        service.connect("old", subprotocols=[V1]) as v1,
    ):
        async with outage(redis_server):
            for probe in PROBES:
                await service.wait_for_status(probe, 503)
            async with (
                service.connect("new") as new_plain,
                service.connect("new", subprotocols=[V1]) as new_v1,
            ):
                assert_come_back_later(await ending(new_plain), 1013)
                assert_come_back_later(await ending(new_v1), 1013)
        for probe in PROBES:
            await service.wait_for_status(probe, 200)
        async with (
            service.connect("new") as new,
            Redis(port=redis_server.port) as redis,
        ):
            await assert_hears(redis, "old", plain, v1)
            await assert_hears(redis, "new", new)
    assert_nothing_went_wrong(service.output())


async def test_lost_subscription_connection(service: ServiceProcess, redis: Redis) -> None:
    """Tabs do not notice that the connection for subscriptions was replaced, again and again."""
    async with service.connect("old") as plain, service.connect("old", subprotocols=[V1]) as v1:
        for n in range(1, 6):
            await redis.client_kill_filter(_type="pubsub")

            async def replaced(times: int = n) -> bool:
                opened = (await service.metrics())["websocket_redis_connections_opened_total"]
                return opened == 1 + times

            await until(replaced)
            await service.wait_for_status("/readyz", 200)
            async with service.connect(f"new-{n}") as new:
                await assert_hears(redis, "old", plain, v1)
                await assert_hears(redis, f"new-{n}", new)
    assert_nothing_went_wrong(service.output())


async def test_started_without_redis() -> None:
    """A service that is there before its Redis serves as soon as that one has come."""
    server = RedisServer(port=free_port())
    async with ServiceProcess(server.url, ready_status=503) as service:
        async with service.connect("early") as refused:
            assert_come_back_later(await ending(refused), 1013)
        async with server, Redis(port=server.port) as redis:
            for probe in PROBES:
                await service.wait_for_status(probe, 200)
            async with service.connect("new") as new:
                await assert_hears(redis, "new", new)
        assert_nothing_went_wrong(service.output())


async def assert_hears(redis: Redis, user: str, *tabs: ClientConnection) -> None:
    """What is published now reaches each of the user's tabs."""
    text = '{"event": "number", "data": {"n": 1}}'
    assert await redis.publish(f"ws:{user}", text) == 1
    for tab in tabs:
        while '"event"' not in (received := await tab.recv(decode=True)):
            pass  # of the v1 dialect: welcome, heartbeat
        assert '"data": {"n": 1}' in received
