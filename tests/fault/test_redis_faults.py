"""Redis breaks under traffic: what it still knows reaches every tab, the rest is announced."""

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from redis.asyncio import Redis

from huleedu_service_libs.redis_server import RedisServer
from tests.fault.durability import DURABLE
from tests.fault.peers import assert_nothing_went_wrong, until
from tests.fault.traffic import SETTINGS, Traffic, traffic
from tests.service_process import ServiceProcess


@asynccontextmanager
async def served(redis_server: RedisServer) -> AsyncIterator[tuple[ServiceProcess, Traffic]]:
    """The service with traffic through it; what it has logged is in order afterwards."""
    async with ServiceProcess(redis_server.url, settings=SETTINGS) as service:
        async with traffic(redis_server.url, lambda: service.url) as going:
            yield service, going
        assert_nothing_went_wrong(service.output())


async def test_subscription_connection_killed(redis_server: RedisServer, redis: Redis) -> None:
    """Tabs do not notice that the connection for subscriptions is lost, again and again."""
    async with served(redis_server) as (service, going):
        for n in range(1, 11):
            await redis.client_kill_filter(_type="pubsub")
            await going.is_acknowledged(3)
            await until(partial(has_opened, service, 1 + n))
        figures = await going.finish()
        assert figures.nobody_noticed, str(figures)


async def test_output_buffer_overflows(redis_server: RedisServer, redis: Redis) -> None:
    """What Redis throws away because the service was held up comes out of the history."""
    await redis.config_set("client-output-buffer-limit", "pubsub 100kb 0 0")
    async with served(redis_server) as (service, going):
        service.signal_all(signal.SIGSTOP)

        async def is_cut_off() -> bool:
            await going.burst(10, padding_bytes=60_000)
            return not await redis.client_list(_type="pubsub")

        await until(is_cut_off)
        service.signal_all(signal.SIGCONT)
        await going.flows()
        figures = await going.finish()
        assert figures.nothing_missing, str(figures)


async def test_redis_hangs(redis_server: RedisServer) -> None:
    """Publications of which nobody knows the fate arrive once, when Redis goes on."""
    async with served(redis_server) as (service, going):
        for _ in range(3):
            redis_server.signal(signal.SIGSTOP)
            await service.wait_for_status("/readyz", 503)
            await going.is_uncertain(2)
            redis_server.signal(signal.SIGCONT)
            await going.flows()
        figures = await going.finish()
        assert figures.uncertain
        assert figures.nothing_missing, str(figures)


async def test_durable_redis_killed() -> None:
    """A Redis that keeps what it acknowledges can be killed: tabs miss nothing."""
    async with (
        RedisServer(options=DURABLE) as redis_server,
        served(redis_server) as (service, going),
    ):
        for _ in range(3):
            await redis_server.kill()
            await going.is_uncertain()
            await service.wait_for_status("/readyz", 503)
            await redis_server.launch()
            await going.flows()
        figures = await going.finish()
        assert figures.nothing_missing, str(figures)


async def test_forgetful_redis_killed(redis_server: RedisServer) -> None:
    """After a Redis without persistence has restarted, every tab is told, and it goes on."""
    async with served(redis_server) as (_, going):
        await redis_server.kill()
        await going.is_uncertain()
        killed_at = going.ledger.now()
        await redis_server.launch()
        await going.flows()
        figures = await going.finish()
        assert figures.flawless, str(figures)
        assert all(tab.was_told(killed_at) for tab in going.ledger.tabs), str(figures)


async def test_redis_goes_back(redis_server: RedisServer, redis: Redis) -> None:
    """A Redis that comes back with an old snapshot, and uses offsets again, deceives nobody."""
    async with served(redis_server) as (_, going):
        await redis.save()
        saved_at = going.ledger.now()
        await going.is_acknowledged(20)
        await going.flows()
        await redis_server.kill()
        killed_at = going.ledger.now()
        await redis_server.launch()
        # Until the offsets have overtaken those that were given away twice.
        await going.is_acknowledged(60)
        await going.flows()
        figures = await going.finish()
        assert figures.flawless, str(figures)
        assert not figures.forgotten, str(figures)
        assert all(tab.was_told(killed_at) for tab in going.ledger.tabs), str(figures)
        offsets = [
            (publication.user, int(publication.id.partition("-")[0]))
            for publication in going.ledger.publications.values()
            if publication.id is not None and publication.began > saved_at
        ]
        assert len(set(offsets)) < len(offsets)


async def test_flushed(redis_server: RedisServer, redis: Redis) -> None:
    """FLUSHALL is announced to every tab, and what is published after it arrives."""
    async with served(redis_server) as (_, going):
        for _ in range(3):
            flushed_at = going.ledger.now()
            await redis.flushall()
            await going.flows()
            assert all(tab.was_told(flushed_at) for tab in going.ledger.tabs)
        figures = await going.finish()
        assert figures.flawless, str(figures)


async def test_scripts_flushed(redis_server: RedisServer, redis: Redis) -> None:
    """Redis may forget its scripts at any time: they are sent again, and nobody notices."""
    async with served(redis_server) as (_, going):
        for _ in range(20):
            await redis.script_flush()
            await going.is_acknowledged(2)
        figures = await going.finish()
        assert not figures.uncertain, str(figures)
        assert figures.nobody_noticed, str(figures)


async def has_opened(service: ServiceProcess, connections: int) -> bool:
    """Whether the service has opened so many subscription connections since its start."""
    metrics = await service.metrics()
    return metrics["websocket_redis_connections_opened_total"] >= connections
