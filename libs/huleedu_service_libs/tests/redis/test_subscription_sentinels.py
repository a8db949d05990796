"""Subscribers of a Redis whose master changes."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
from redis import exceptions

from huleedu_service_libs.payload import Gap
from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.testing.polling import until
from huleedu_service_libs.testing.redis_sentinels import RedisSentinels

if TYPE_CHECKING:
    from pathlib import Path

    from redis.asyncio import Redis

    from libs.huleedu_service_libs.tests.redis.conftest import Next

TIMEOUT_S = 0.5


def attentive(sentinels: RedisSentinels) -> RedisClient:
    return RedisClient(client_id="attentive", redis_url=sentinels.url, timeout_s=TIMEOUT_S)


async def heard(client: RedisClient) -> None:
    async def hears() -> bool:
        return client.hears

    await until(hears)


async def published(redis: Redis, channel: str) -> None:
    """Publish once there is a subscriber."""

    async def has_subscriber() -> bool:
        return bool(await redis.pubsub_numsub(channel) == [(channel, 1)])

    await until(has_subscriber)
    assert await redis.publish(channel, f"for {channel}") == 1


async def test_failover(redis_binary: Path, hear: Next) -> None:
    """After the master has died every subscriber hears the new one, and knows of the gap."""
    async with (
        RedisSentinels(redis_binary) as sentinels,
        attentive(sentinels) as client,
        AsyncExitStack() as stack,
    ):
        subscriptions = {
            f"room:{number}": await stack.enter_async_context(
                client.subscribe(f"room:{number}", mark_gaps=True)
            )
            for number in range(20)
        }
        await heard(client)
        await sentinels.kill_master()
        new = await sentinels.new_master()
        for channel, subscription in subscriptions.items():
            await published(sentinels.admin(new), channel)
            assert isinstance(await hear(subscription), Gap)
            assert await hear(subscription) == f"for {channel}".encode()
        await heard(client)


async def test_old_master_that_lives_on(redis_binary: Path, hear: Next) -> None:
    """A master that was replaced, but is in reach and answers, does not keep its subscribers."""
    async with (
        RedisSentinels(redis_binary) as sentinels,
        attentive(sentinels) as client,
        client.subscribe("a", mark_gaps=True) as subscription,
    ):
        await heard(client)
        old = sentinels.master
        # Not even the sentinels can turn it into a replica.
        await sentinels.admin(old).acl_setuser(
            "default", enabled=True, commands=["-replicaof", "-slaveof"]
        )
        await sentinels.promote_replica()
        new = await sentinels.new_master()
        assert await sentinels.admin(old).publish("a", "from the old one") == 1
        assert await hear(subscription) == b"from the old one"
        await published(sentinels.admin(new), "a")
        assert isinstance(await hear(subscription), Gap)
        assert await hear(subscription) == b"for a"
        assert client.subscription_statistics().times_deaf == 1
        await heard(client)
        role = await sentinels.admin(old).ask("ROLE")
        assert role[0] == "master"


async def test_sentinels_away_at_start(redis_binary: Path, hear: Next) -> None:
    """A process that starts before its sentinels hears once they are there."""
    async with RedisSentinels(redis_binary) as sentinels:
        for sentinel in sentinels.sentinels:
            await sentinel.kill()
        async with attentive(sentinels) as client:
            with pytest.raises(exceptions.TimeoutError, match="no sentinel knows"):
                await client.subscribe("a").__aenter__()
            assert not client.hears
            for sentinel in sentinels.sentinels:
                await sentinel.launch()
            await heard(client)
            async with client.subscribe("a") as subscription:
                await published(sentinels.admin(sentinels.master), "a")
                assert await hear(subscription) == b"for a"
