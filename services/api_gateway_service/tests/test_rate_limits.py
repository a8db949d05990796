import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import monotonic

import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_server import RedisServer
from huleedu_service_libs.testing.redis_cluster import RedisCluster
from huleedu_service_libs.testing.redis_sentinels import RedisSentinels
from services.api_gateway_service.circuit_breaker import CircuitBreaker
from services.api_gateway_service.implementations.rate_limits import RateLimits
from services.api_gateway_service.metrics import GatewayMetrics

WINDOW_S = 60
KEYS = "gateway:rate-limit:*"


@pytest.fixture
async def redis_server() -> AsyncIterator[RedisServer]:
    async with RedisServer() as server:
        yield server


@asynccontextmanager
async def rate_limits(
    redis_url: str, limit: int, *, clock: Callable[[], float] = monotonic, timeout_s: float = 5
) -> AsyncIterator[RateLimits]:
    async with RedisClient(
        client_id="api_gateway_service", redis_url=redis_url, timeout_s=timeout_s
    ) as client:
        yield RateLimits(
            client,
            CircuitBreaker(failures_to_open=1, recovery_s=1, clock=clock),
            GatewayMetrics(CollectorRegistry()),
            limit=limit,
            window_s=WINDOW_S,
        )


async def script_calls(redis: Redis) -> int:
    """How often Redis was asked to count."""
    statistics = await redis.info("commandstats")
    return sum(
        statistics.get(f"cmdstat_{command}", {"calls": 0})["calls"]
        for command in ("eval", "evalsha")
    )


@pytest.mark.parametrize("topology", [RedisServer, RedisSentinels, RedisCluster])
async def test_each_kind_of_redis(
    topology: Callable[[], RedisServer | RedisSentinels | RedisCluster],
) -> None:
    """The limit is exact whatever stands behind the URL: a server, a Sentinel set, a Cluster."""
    async with topology() as redis, rate_limits(redis.url, 5) as limits:
        decisions = await asyncio.gather(*(limits.check("teacher-1") for _ in range(20)))
        assert [decision.allowed for decision in decisions].count(True) == 5
        assert (await limits.check("teacher-2")).remaining == 4


async def test_a_window_begins_with_each_request(redis_server: RedisServer) -> None:
    """What was let through counts until it is a whole window old, and not up to a fixed moment."""
    async with (
        Redis(port=redis_server.port, decode_responses=True) as redis,
        rate_limits(redis_server.url, 3) as limits,
    ):
        for _ in range(3):
            assert (await limits.check("teacher-1")).allowed
        [key] = [key async for key in redis.scan_iter(KEYS)]
        # As if the first had been made most of a window ago, and the second more than one.
        first, second, _ = map(str, await redis.zrange(key, 0, -1))
        await redis.zincrby(key, -50e6, first)
        await redis.zincrby(key, -61e6, second)
        decision = await limits.check("teacher-1")
        assert (decision.allowed, decision.remaining) == (True, 0)
        refused = await limits.check("teacher-1")
        assert (refused.allowed, refused.remaining) == (False, 0)
        assert 0 < refused.reset_after_s <= 10


async def test_refusals_do_not_count(redis_server: RedisServer) -> None:
    """Who goes on asking while they are refused is not refused for longer."""
    async with (
        Redis(port=redis_server.port) as redis,
        rate_limits(redis_server.url, 1) as limits,
    ):
        await limits.check("teacher-1")
        [key] = [key async for key in redis.scan_iter(KEYS)]
        before = await redis.zrange(key, 0, -1, withscores=True)
        for _ in range(10):
            assert not (await limits.check("teacher-1")).allowed
        assert await redis.zrange(key, 0, -1, withscores=True) == before


async def test_a_limit_that_was_lowered(redis_server: RedisServer) -> None:
    """Gateways with another limit than the others say nothing absurd."""
    async with (
        rate_limits(redis_server.url, 5) as generous,
        rate_limits(redis_server.url, 2) as strict,
    ):
        for _ in range(4):
            await generous.check("teacher-1")
        decision = await strict.check("teacher-1")
        assert (decision.allowed, decision.remaining) == (False, 0)
        assert (await generous.check("teacher-1")).allowed


@pytest.mark.parametrize("user_id", ["", "\ud800", "\x00", "ü" * 10_000, "{a}", "a}{b"])
async def test_any_id_is_counted(redis_server: RedisServer, user_id: str) -> None:
    """Whatever an identity service takes for a user's id has a limit of its own."""
    async with rate_limits(redis_server.url, 1) as limits:
        assert (await limits.check(user_id)).allowed
        assert not (await limits.check(user_id)).allowed
        assert (await limits.check(user_id + "x")).allowed


async def test_a_redis_that_hangs_is_not_asked_by_everybody(redis_server: RedisServer) -> None:
    """Once it has not answered in time, nobody waits for it until it may be tried again."""
    now_s = 100.0
    async with (
        Redis(port=redis_server.port) as redis,
        rate_limits(redis_server.url, 5, clock=lambda: now_s, timeout_s=0.2) as limits,
    ):
        await limits.check("teacher-1")
        before = await script_calls(redis)
        redis_server.signal(signal.SIGSTOP)
        try:
            decisions = [await limits.check("teacher-1") for _ in range(10)]
        finally:
            redis_server.signal(signal.SIGCONT)
        assert all(decision.allowed for decision in decisions)
        assert await script_calls(redis) <= before + 1
        assert (await limits.check("teacher-1")).remaining == 5
        now_s += 1
        assert (await limits.check("teacher-1")).remaining < 5
