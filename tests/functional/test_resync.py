"""A tab can't be told what it has missed: it is told that, at once and once."""

import contextlib
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from huleedu_service_libs.notification_settings import HistoryLimits
from huleedu_service_libs.redis_channels import UserKeys, user_channel
from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_server import RedisServer
from tests.functional.closes import closed
from tests.functional.v1_tab import Tab, publish, v1_tab
from tests.service_process import ServiceProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")


@contextlib.asynccontextmanager
async def told(
    service: ServiceProcess, user: str, cursor: str, reason: str, newest: str | None
) -> AsyncIterator[Tab]:
    """A tab that was told to start anew, and from where on it is told everything."""
    async with v1_tab(service, user, cursor) as tab:
        assert (tab.welcome["resumed"], tab.welcome["cursor"]) == (False, newest)
        assert await tab.frame() == {"type": "resync", "reason": reason, "cursor": newest}
        yield tab


async def assert_goes_on(
    service: ServiceProcess, publisher: RedisClient, user: str, tab: Tab
) -> None:
    """Nothing is replayed, and from now on all is as ever."""
    ids = await publish(publisher, user, [1, 2, 3])
    assert await tab.numbers(3) == [1, 2, 3]
    async with v1_tab(service, user, ids[0]) as other:
        assert other.welcome["resumed"] is True
        assert await other.numbers(2) == [2, 3]


async def test_more_missed_than_is_kept(service: ServiceProcess, publisher: RedisClient) -> None:
    """10,000 were missed and 200 are kept: the tab gets none of them, and is told."""
    cursor, *_, newest = await publish(publisher, "long-away", range(10_000))
    async with told(service, "long-away", cursor, "history_trimmed", newest) as tab:
        await assert_goes_on(service, publisher, "long-away", tab)


async def test_expired_history(
    service: ServiceProcess, redis_server: RedisServer, redis: Redis, publisher: RedisClient
) -> None:
    """After the history has expired, who had seen all is resumed, and who had not is told."""
    limits = HistoryLimits(ttl_s=1)
    async with RedisClient(
        client_id="test", redis_url=redis_server.url, history_limits=limits
    ) as short_lived:
        earlier, newest = await publish(short_lived, "expired", range(2))
    while await redis.exists(UserKeys.of(user_channel("expired")).history):
        pass
    async with (
        v1_tab(service, "expired", newest) as up_to_date,
        told(service, "expired", earlier, "history_trimmed", newest) as behind,
    ):
        assert up_to_date.welcome["resumed"] is True
        await publish(publisher, "expired", [0])
        assert await up_to_date.numbers(1) == await behind.numbers(1) == [0]
        await assert_goes_on(service, publisher, "expired", behind)


async def test_flushed(service: ServiceProcess, redis: Redis, publisher: RedisClient) -> None:
    """After FLUSHALL nobody knows any id: tabs that come back are told, and so are open ones."""
    ids = await publish(publisher, "flushed", range(5))
    async with v1_tab(service, "flushed") as open_tab, service.connect("flushed") as plain:
        await redis.flushall()
        async with told(service, "flushed", ids[-1], "history_lost", None) as tab:
            (first,) = await publish(publisher, "flushed", [0])
            assert await tab.numbers(1) == [0]
            assert await open_tab.frame() == {
                "type": "resync",
                "reason": "history_lost",
                "cursor": first,
            }
            close = await closed(plain)
            assert (close.code, close.messages) == (1013, [])
            await assert_goes_on(service, publisher, "flushed", tab)
            assert await open_tab.numbers(3) == [1, 2, 3]
    async with told(
        service, "flushed", ids[-1], "history_lost", await newest_of(publisher, "flushed")
    ) as tab:
        await assert_goes_on(service, publisher, "flushed", tab)


async def newest_of(publisher: RedisClient, user: str) -> str:
    return await publisher.history.newest(user)


@pytest.mark.parametrize("published_since", [1, 2, 3, 5])
async def test_rolled_back(published_since: int) -> None:
    """Redis comes back from an old snapshot and uses offsets again: no tab is led astray."""
    async with (
        RedisServer() as server,
        ServiceProcess(server.url) as service,
        RedisClient(client_id="test", redis_url=server.url) as publisher,
    ):
        early = await publish(publisher, "a", range(3))
        async with Redis(port=server.port) as redis:
            await redis.save()
        late = await publish(publisher, "a", range(3, 6))
        async with v1_tab(service, "a", early[-1]) as there:
            assert await there.numbers(3) == [3, 4, 5]
            await server.kill()
            await server.launch()
            frame = await there.frame()
            assert (frame["type"], frame["cursor"]) == ("resync", early[-1])
            again = await publish(publisher, "a", range(100, 100 + published_since))
            offsets = [id_.partition("-")[0] for id_ in again]
            assert offsets[:3] == [id_.partition("-")[0] for id_ in late][:published_since]
            assert await there.numbers(len(again)) == list(range(100, 100 + published_since))
        for n, cursor in enumerate(late):
            reason = "cursor_unknown" if n < published_since else "history_lost"
            async with told(service, "a", cursor, reason, again[-1]):
                pass
        for n, cursor in enumerate(early):
            async with v1_tab(service, "a", cursor) as back:
                assert back.welcome["resumed"] is True
                missed = [*range(n + 1, 3), *range(100, 100 + published_since)]
                assert await back.numbers(len(missed)) == missed


async def test_cursor_of_another_user(service: ServiceProcess, publisher: RedisClient) -> None:
    """With a cursor of another user's a tab sees nothing of theirs, and is told."""
    foreign, *_ = await publish(publisher, "alice", range(5))
    *_, newest = await publish(publisher, "bob", range(5))
    async with told(service, "bob", foreign, "cursor_unknown", newest) as tab:
        await assert_goes_on(service, publisher, "bob", tab)
    async with told(service, "carol", foreign, "history_lost", None) as tab:
        await assert_goes_on(service, publisher, "carol", tab)


@pytest.mark.parametrize(
    "cursor",
    ["0", "null", "5-", "5-7 ", "5 7", "💥", "%00", "a" * 4000, "1-1&cursor=2-2", "+", "*"],
)
async def test_malformed_cursor(
    service: ServiceProcess, publisher: RedisClient, cursor: str
) -> None:
    """Whatever a client gives as its cursor, it is unknown, or an id."""
    *_, newest = await publish(publisher, "malformed", range(3))
    async with told(service, "malformed", cursor, "cursor_unknown", newest) as tab:
        await assert_goes_on(service, publisher, "malformed", tab)
