"""Histories read by very many at once, as when a service restarts or has lost Redis."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import pytest
from redis import exceptions

from huleedu_service_libs.history_pages import HistoryPage
from huleedu_service_libs.notification_ids import is_origin
from huleedu_service_libs.notifications import Notification
from huleedu_service_libs.redis_channels import UserKeys, user_channel
from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_scripts import MAX_JOINED_CALLS
from huleedu_service_libs.redis_server import RedisServer
from huleedu_service_libs.testing.polling import until
from huleedu_service_libs.testing.redis_cluster import RedisCluster
from huleedu_service_libs.testing.redis_sentinels import RedisSentinels

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from redis.asyncio import Redis

    from huleedu_service_libs.notification_ids import NotificationId

READERS = 1000
USERS = [f"user-{number}" for number in range(READERS)]
TIMEOUT_S = 0.6
GIVE_UP_AFTER_S = 20.0


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


async def newest_of_all(
    client: RedisClient, users: Sequence[str] = USERS
) -> dict[str, NotificationId]:
    ids = await asyncio.gather(*(client.history.newest(user) for user in users))
    return dict(zip(users, ids, strict=True))


async def test_everybody_reads_their_own(client_anywhere: RedisClient) -> None:
    """A thousand users who come at once each get their own place, and what they have missed."""
    client = client_anywhere
    origins = await newest_of_all(client)
    assert all(map(is_origin, origins.values()))
    assert len(set(origins.values())) == READERS
    assert await newest_of_all(client) == origins

    notified = USERS[::10]
    receipts = await client.publish_notifications(
        [Notification(user_id=user, event_type="e", data={"for": user}) for user in notified]
    )
    ids = {user: receipt.id for user, receipt in zip(notified, receipts, strict=True)}
    pages = await asyncio.gather(*(client.history.after(user, origins[user]) for user in USERS))
    for user, page in zip(USERS, pages, strict=True):
        assert isinstance(page, HistoryPage)
        assert page.complete
        assert page.newest == page.position == ids.get(user, origins[user])
        assert [entry.id for entry in page.entries] == ([ids[user]] if user in ids else [])
    assert await newest_of_all(client) == origins | ids


async def test_few_commands_for_many_readers(client: RedisClient, admin: Redis) -> None:
    """A thousand readers cost Redis one script call for every sixteen of them."""
    await admin.config_resetstat()
    origins = await newest_of_all(client)
    for user, page in zip(
        USERS,
        await asyncio.gather(*(client.history.after(user, origins[user]) for user in USERS)),
        strict=True,
    ):
        assert page == HistoryPage(origins[user], origins[user], True, ())
    statistics = await admin.info("commandstats")
    calls = sum(
        statistics[f"cmdstat_{command}"]["calls"]
        for command in ("eval", "evalsha")
        if f"cmdstat_{command}" in statistics
    )
    assert calls <= 2 * READERS / MAX_JOINED_CALLS + 10


async def test_several_readers_of_one_user(client: RedisClient) -> None:
    """All tabs of a user get the same place, also when they are the first to ask."""
    places = await asyncio.gather(*(client.history.newest("t") for _ in range(50)))
    assert len(set(places)) == 1


async def test_never_older_than_the_question(client: RedisClient) -> None:
    """Whoever asks after a publication learns of it, whatever else is being read just then."""
    storm = asyncio.create_task(newest_of_all(client))
    for _ in range(100):
        early = asyncio.create_task(client.history.newest("t"))
        await asyncio.sleep(0)  # it has asked
        receipt = await client.publish_notification(
            Notification(user_id="t", event_type="e", data={})
        )
        late, *_ = await asyncio.gather(client.history.newest("t"), early)
        assert late == receipt.id
    await storm


async def test_wrong_keys_are_their_users_alone(client: RedisClient, admin: Redis) -> None:
    """A user whose keys somebody has spoilt gets an error; the others do not."""
    origins = await newest_of_all(client, USERS[:32])
    spoilt = [UserKeys.of(user_channel(user)) for user in USERS[:2]]
    await admin.delete(spoilt[0].last, spoilt[1].last)
    await admin.rpush(spoilt[0].last, "x")
    await admin.set(spoilt[1].history, "x")
    answers = await asyncio.gather(
        *(client.history.newest(user) for user in USERS[:32]), return_exceptions=True
    )
    for answer in answers[:2]:
        assert isinstance(answer, exceptions.ResponseError)
        assert "WRONGTYPE" in str(answer)
    assert answers[2:] == [origins[user] for user in USERS[2:32]]


@pytest.mark.parametrize("is_on_its_way", [False, True])
async def test_who_gives_up_hurts_nobody(client: RedisClient, *, is_on_its_way: bool) -> None:
    """A reader that is cancelled takes nobody's answer away."""
    await client.ping()
    readers = [asyncio.create_task(client.history.newest(user)) for user in USERS[:100]]
    # Once to ask, and once more for what was asked to leave.
    for _ in range(1 + is_on_its_way):
        await asyncio.sleep(0)
    for reader in readers[::3]:
        reader.cancel()
    answers = await asyncio.gather(*readers, return_exceptions=True)
    assert all(isinstance(answer, asyncio.CancelledError) for answer in answers[::3])
    staying = [user for number, user in enumerate(USERS[:100]) if number % 3]
    assert [answer for answer in answers if isinstance(answer, str)] == list(
        (await newest_of_all(client, staying)).values()
    )


async def test_hung_redis(server: RedisServer) -> None:
    """While Redis hangs every reader is told so in its own time, and all is well afterwards."""
    async with RedisClient(client_id="test", redis_url=server.url, timeout_s=TIMEOUT_S) as client:
        origins = await newest_of_all(client)
        server.signal(signal.SIGSTOP)
        async with asyncio.timeout(GIVE_UP_AFTER_S):
            answers = await asyncio.gather(
                *(client.history.newest(user) for _ in range(10) for user in USERS),
                return_exceptions=True,
            )
        assert {type(answer) for answer in answers} == {exceptions.TimeoutError}
        server.signal(signal.SIGCONT)

        async def is_well() -> bool:
            try:
                return await newest_of_all(client) == origins
            except exceptions.RedisError:
                return False

        await until(is_well)


async def test_late_reader_has_its_own_time(server: RedisServer) -> None:
    """Who asks of a hung Redis later than others still has time when theirs is up."""
    async with RedisClient(client_id="test", redis_url=server.url, timeout_s=2.0) as client:
        origin = await client.history.newest("t")
        server.signal(signal.SIGSTOP)
        early = asyncio.create_task(client.history.newest("early"))
        # The second half of the first one's time is the first half of the other's.
        await asyncio.wait([early], timeout=1.0)
        late = asyncio.create_task(client.history.newest("t"))
        with pytest.raises(exceptions.TimeoutError):
            await early
        server.signal(signal.SIGCONT)
        assert await late == origin


async def test_redis_is_away(redis_binary: Path) -> None:
    """Readers of a Redis that is not there are told at once, and answered when it is back."""
    async with (
        RedisServer(redis_binary) as server,
        RedisClient(client_id="test", redis_url=server.url) as client,
    ):
        await newest_of_all(client)
        await server.kill()
        answers = await asyncio.gather(
            *(client.history.newest(user) for user in USERS), return_exceptions=True
        )
        assert {type(answer) for answer in answers} == {exceptions.ConnectionError}
        await server.launch()
        assert all(map(is_origin, (await newest_of_all(client)).values()))


async def test_stopped_client(server: RedisServer) -> None:
    """A client that is stopped tells those who wait for an answer, and can be started again."""
    client = RedisClient(client_id="test", redis_url=server.url)
    with pytest.raises(RuntimeError, match="not started"):
        await client.history.newest("t")
    await client.start()
    origin = await client.history.newest("t")
    server.signal(signal.SIGSTOP)
    waiting = [asyncio.create_task(client.history.newest("t")) for _ in range(3)]
    await asyncio.sleep(0)  # they have asked
    await client.stop()
    for answer in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(answer, exceptions.ConnectionError)
    server.signal(signal.SIGCONT)
    async with client:
        assert await client.history.newest("t") == origin


async def test_hung_node_holds_up_its_own_users(redis_binary: Path) -> None:
    """On a Cluster a node that hangs delays none of the users of other nodes."""
    async with (
        RedisCluster(redis_binary) as cluster,
        RedisClient(client_id="test", redis_url=cluster.url, timeout_s=60) as client,
    ):
        origins = await newest_of_all(client)
        nodes = {user: client.node_of(UserKeys.of(user_channel(user)).last) for user in USERS}
        assert len(set(nodes.values())) == 3
        hung = await cluster.node_of(0)
        stuck = [user for user, node in nodes.items() if str(node) == f"127.0.0.1:{hung.port}"]
        assert stuck
        hung.signal(signal.SIGSTOP)
        waiting = [asyncio.create_task(client.history.newest(user)) for user in stuck]
        others = [user for user in USERS if user not in stuck]
        async with asyncio.timeout(GIVE_UP_AFTER_S):
            assert await newest_of_all(client, others) == {user: origins[user] for user in others}
        assert not any(task.done() for task in waiting)
        hung.signal(signal.SIGCONT)
        assert await asyncio.gather(*waiting) == [origins[user] for user in stuck]
