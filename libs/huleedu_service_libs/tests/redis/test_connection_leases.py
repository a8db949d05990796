"""How many connections a user has, while Redis is well."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from redis import exceptions

from huleedu_service_libs.admission import Admission
from huleedu_service_libs.connection_leases import ConnectionLeases
from huleedu_service_libs.redis_channels import UserKeys, user_channel
from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_server import RedisServer
from huleedu_service_libs.testing.polling import until
from huleedu_service_libs.testing.redis_cluster import RedisCluster
from huleedu_service_libs.testing.redis_sentinels import RedisSentinels
from libs.huleedu_service_libs.tests.redis.user_ids import USER_IDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from redis.asyncio import Redis

# Three renewals in each second.
DURATION_S = 1.0
GRANTED, FULL, FULL_FOR_NOW = Admission


@pytest.fixture(params=["server", "sentinels", "cluster"])
async def client_anywhere(
    request: pytest.FixtureRequest, redis_binary: Path
) -> AsyncIterator[RedisClient]:
    topologies = {"server": RedisServer, "sentinels": RedisSentinels, "cluster": RedisCluster}
    async with (
        topologies[request.param](redis_binary) as running,
        RedisClient(client_id="test", redis_url=running.url) as client,
    ):
        yield client


@pytest.fixture
async def leases(client: RedisClient) -> AsyncIterator[ConnectionLeases]:
    async with ConnectionLeases(client) as entered:
        yield entered


def key_of(user_id: str) -> str:
    return UserKeys.of(user_channel(user_id)).connections


async def ids_of(leases: ConnectionLeases, user_id: str) -> set[str]:
    return {lease.connection_id for lease in await leases.of_user(user_id)}


async def renewed(leases: ConnectionLeases, user_id: str) -> None:
    """Return once all leases of the user have been renewed."""
    before = (await leases.of_user(user_id))[-1].ends_at

    async def all_end_later() -> bool:
        found = await leases.of_user(user_id)
        return bool(found) and found[0].ends_at > before

    await until(all_end_later)


async def test_exactly_the_limit(client_anywhere: RedisClient) -> None:
    """However many tabs a user opens at once, as many get in as are allowed to each user."""
    async with ConnectionLeases(client_anywhere) as leases:
        users = [f"user-{n}" for n in range(20)]
        answers = await asyncio.gather(
            *(leases.acquire(user, f"{user}-{n}", limit=5) for n in range(10) for user in users)
        )
        assert Counter(answers) == {GRANTED: 100, FULL: 100}
        for user in users:
            assert len(await leases.of_user(user)) == 5
        assert await leases.users() == sorted(users)
    assert await leases.users() == []
    assert await client_anywhere.scan_pattern("connections:*") == []


async def test_who_leaves_makes_room(leases: ConnectionLeases) -> None:
    """A user who reloads a page has its place at once, also where Redis was not told yet."""
    for n in range(5):
        assert await leases.acquire("t", str(n), limit=5) is GRANTED
    for n in range(5, 50):
        leases.release("t", str(n - 5))
        assert await leases.acquire("t", str(n), limit=5) is GRANTED
    assert await ids_of(leases, "t") == {str(n) for n in range(45, 50)}


async def test_storm_of_reloads(leases: ConnectionLeases) -> None:
    """A thousand users who all leave and come back at once are all let in again."""
    users = [f"user-{n}" for n in range(1000)]
    await asyncio.gather(*(leases.acquire(user, f"1-{user}", limit=1) for user in users))
    for user in users:
        leases.release(user, f"1-{user}")
    answers = await asyncio.gather(*(leases.acquire(user, f"2-{user}", limit=1) for user in users))
    assert set(answers) == {GRANTED}


async def test_proof_of_life(client_anywhere: RedisClient) -> None:
    """Whose process renews a lease when it is asked to is there; all other leases are lapsing."""
    async with ConnectionLeases(client_anywhere) as one, ConnectionLeases(client_anywhere) as other:
        await one.acquire("t", "a", limit=2)
        await other.acquire("t", "b", limit=2)
        asked_at = await one.clock("t")
        one.renew_now("t")
        answer = await one.acquire("t", "c", limit=2, renewed_since=asked_at)
        assert answer is FULL_FOR_NOW
        other.renew_now("t")
        other.renew_now("nobody")
        answer = await other.acquire("t", "d", limit=2, renewed_since=asked_at)
        assert answer is FULL
        one.release("t", "a")
        assert await other.acquire("t", "e", limit=2) is GRANTED
        assert await ids_of(one, "t") == {"b", "e"}


async def test_release_of_nothing(leases: ConnectionLeases) -> None:
    """Giving back what one does not have changes nothing, for nobody."""
    await leases.acquire("t", "a", limit=1)
    leases.release("t", "b")
    leases.release("nobody", "a")
    assert await leases.acquire("t", "b", limit=1) is FULL
    leases.release("t", "b")
    assert await ids_of(leases, "t") == {"a"}
    leases.release("t", "a")
    leases.release("t", "a")
    assert await leases.acquire("t", "c", limit=1) is GRANTED


async def test_nothing_stays(leases: ConnectionLeases, admin: Redis) -> None:
    """When the last connection of a user is gone, Redis remembers nothing of it."""
    await leases.acquire("t", "a", limit=5)
    assert await admin.zcard(key_of("t")) == 1
    leases.release("t", "a")

    async def is_forgotten() -> bool:
        return not await admin.exists(key_of("t"))

    await until(is_forgotten)


async def test_lapsed_ones_go(client: RedisClient, admin: Redis) -> None:
    """What a killed process has left of a user does not stay as long as the user is there."""
    async with ConnectionLeases(client, duration_s=DURATION_S) as leases:
        await leases.acquire("t", "a", limit=5)
        await admin.zadd(key_of("t"), {"dead": 1})
        await renewed(leases, "t")
        assert await admin.zrange(key_of("t"), 0, -1) == [b"a"]


async def test_connections_outlast_a_lease(client_anywhere: RedisClient) -> None:
    """A connection counts for as long as it is open, also on another process."""
    async with (
        ConnectionLeases(client_anywhere, duration_s=DURATION_S) as mine,
        ConnectionLeases(client_anywhere, duration_s=DURATION_S) as other,
    ):
        assert await mine.acquire("t", "a", limit=2) is GRANTED
        assert await other.acquire("t", "b", limit=2) is GRANTED
        for _ in range(4):
            await renewed(mine, "t")
        assert await ids_of(mine, "t") == {"a", "b"}
        assert await mine.acquire("t", "c", limit=2) is FULL
        mine.release("t", "a")
        await renewed(other, "t")
        assert await ids_of(mine, "t") == {"b"}


async def test_redis_loses_keys(client_anywhere: RedisClient) -> None:
    """What Redis loses comes back by itself, all of it, and what was given back does not."""
    async with ConnectionLeases(client_anywhere, duration_s=DURATION_S) as leases:
        users = [f"user-{n}" for n in range(600)]
        await asyncio.gather(*(leases.acquire(user, user, limit=1) for user in users))
        await asyncio.gather(*(leases.acquire(user, "second", limit=2) for user in users))
        leases.release("user-7", "second")
        leases.release("user-8", "user-8")
        leases.release("user-8", "second")
        await client_anywhere.delete(*map(key_of, users))

        async def is_complete() -> bool:
            return len(await leases.users()) == len(users) - 1

        await until(is_complete)
        await renewed(leases, "user-599")
        assert await ids_of(leases, "user-6") == {"user-6", "second"}
        assert await ids_of(leases, "user-7") == {"user-7"}
        assert await ids_of(leases, "user-8") == set()


async def test_key_expires_with_its_last_lease(client: RedisClient, admin: Redis) -> None:
    """Redis forgets a user when the last of the leases ends, whoever has which duration."""
    async with (
        ConnectionLeases(client, duration_s=1000) as long,
        ConnectionLeases(client, duration_s=100) as short,
    ):
        await long.acquire("t", "long", limit=5)
        await short.acquire("t", "short", limit=5)
        ends_at = {lease.connection_id: lease.ends_at for lease in await long.of_user("t")}
        assert list(ends_at) == ["short", "long"]
        assert 100_000 < await admin.pttl(key_of("t")) <= 1_000_000
        long.release("t", "long")

        async def expires_with_short() -> bool:
            return 0 < await admin.pttl(key_of("t")) <= 100_000

        await until(expires_with_short)


@pytest.mark.parametrize("prefix", ["ws", "*", "a[b]", "x\\y", "{p}", "p:ws"])
async def test_who_is_there(client: RedisClient, prefix: str) -> None:
    """Everybody who is connected is listed, whatever they and the installation are called."""
    async with (
        ConnectionLeases(client, channel_prefix=prefix) as leases,
        ConnectionLeases(client, channel_prefix="q") as others,
    ):
        for user in USER_IDS:
            await leases.acquire(user, "a", limit=1)
            await others.acquire(f"other {user}", "a", limit=1)
        assert await leases.users() == sorted(USER_IDS)
        for user in USER_IDS:
            assert await ids_of(leases, user) == {"a"}


async def test_who_is_about_to_lapse(client: RedisClient, admin: Redis) -> None:
    """Who finds only connections that may be dead in the way is told to come again soon."""
    async with ConnectionLeases(client, duration_s=100) as leases:
        now_s, now_us = await admin.time()
        now = now_s + now_us / 1e6
        await admin.zadd(key_of("t"), {"lapsed": now - 1, "late": now + 45, "fresh": now + 60})
        assert await ids_of(leases, "t") == {"late", "fresh"}
        assert await leases.acquire("t", "a", limit=1) is FULL
        assert await leases.acquire("t", "b", limit=2) is FULL_FOR_NOW
        assert await leases.acquire("t", "c", limit=3) is GRANTED
        assert await leases.acquire("t", "d", limit=2) is FULL


async def test_spoilt_key_is_its_users_alone(client: RedisClient, admin: Redis) -> None:
    """A user whose key somebody has spoilt gets an error; the others are let in, and stay."""
    async with ConnectionLeases(client, duration_s=DURATION_S) as leases:
        await admin.set(key_of("spoilt-0"), "x")
        answers = await asyncio.gather(
            leases.acquire("spoilt-0", "a", limit=1),
            *(leases.acquire(f"user-{n}", "a", limit=1) for n in range(40)),
            leases.acquire("spoilt-1", "a", limit=1),
            return_exceptions=True,
        )
        assert isinstance(answers[0], exceptions.ResponseError)
        assert answers[1:] == [GRANTED] * 41
        await admin.set(key_of("spoilt-1"), "x")
        for _ in range(4):
            await renewed(leases, "user-39")
        for n in range(40):
            assert await ids_of(leases, f"user-{n}") == {"a"}
        with pytest.raises(exceptions.ResponseError, match="WRONGTYPE"):
            await leases.of_user("spoilt-1")
        with pytest.raises(exceptions.ResponseError, match="WRONGTYPE"):
            await leases.users()


@pytest.mark.parametrize("turns", range(6))
async def test_gives_up_while_asking(leases: ConnectionLeases, turns: int) -> None:
    """A client that is gone before it was let in takes nobody's place, however far it came."""
    for number in range(20):
        asking = asyncio.create_task(leases.acquire("t", f"gone-{number}", limit=1))
        for _ in range(turns):
            await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        # As one does who does not know how far it came.
        leases.release("t", f"gone-{number}")
        assert await leases.acquire("t", str(number), limit=1) is GRANTED
        assert await ids_of(leases, "t") == {str(number)}
        leases.release("t", str(number))


async def test_released_while_asking(leases: ConnectionLeases) -> None:
    """A place that is given back before it was given is not taken."""
    asking = asyncio.create_task(leases.acquire("t", "a", limit=1))
    await asyncio.sleep(0)  # it has asked
    leases.release("t", "a")
    await asyncio.wait([asking])
    assert await leases.acquire("t", "b", limit=1) is GRANTED
    assert await ids_of(leases, "t") == {"b"}
    asking.exception()


async def test_each_connection_has_its_own_id(leases: ConnectionLeases) -> None:
    """A connection can't have two places."""
    asking = asyncio.create_task(leases.acquire("t", "a", limit=5))
    await asyncio.sleep(0)  # it has asked
    for _ in range(2):
        with pytest.raises(ValueError, match="a has a place already"):
            await leases.acquire("t", "a", limit=5)
        assert await asking is GRANTED
    assert await leases.acquire("u", "a", limit=5) is GRANTED


async def test_before_and_after(client: RedisClient) -> None:
    """Who asks for a place before the service is up, or when it has ended, gets none."""
    leases = ConnectionLeases(client)
    with pytest.raises(RuntimeError, match="not entered"):
        await leases.acquire("t", "a", limit=1)
    async with leases:
        assert await leases.acquire("t", "a", limit=1) is GRANTED
    with pytest.raises(RuntimeError, match="not entered"):
        await leases.acquire("t", "b", limit=1)
    leases.release("t", "a")
    async with leases:
        assert await leases.acquire("t", "b", limit=1) is GRANTED


async def test_asking_while_the_service_ends(client: RedisClient) -> None:
    """Who asks while the service ends is told so, and takes no place with it."""
    async with ConnectionLeases(client) as leases:
        asking = [asyncio.create_task(leases.acquire("t", str(n), limit=500)) for n in range(500)]
        await asyncio.sleep(0)  # they have asked
    await asyncio.wait(asking)
    assert await leases.of_user("t") == []


async def test_few_commands_for_many(leases: ConnectionLeases, admin: Redis) -> None:
    """Five hundred users who come and go at once cost Redis few script calls."""
    await admin.config_resetstat()
    users = [f"user-{n}" for n in range(500)]
    await asyncio.gather(*(leases.acquire(user, "a", limit=5) for user in users))
    for user in users:
        leases.release(user, "a")

    async def is_empty() -> bool:
        return not await admin.dbsize()

    await until(is_empty)
    statistics = await admin.info("commandstats")
    calls = sum(
        statistics[f"cmdstat_{command}"]["calls"]
        for command in ("eval", "evalsha")
        if f"cmdstat_{command}" in statistics
    )
    assert calls <= 2 * 500 / 16 + 10
