"""A tab was away, comes back with its cursor, and has missed nothing."""

import asyncio
import json

import pytest
import websockets
from redis.asyncio import Redis
from websockets.typing import Subprotocol

from huleedu_service_libs.notification_settings import HistoryLimits
from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_server import RedisServer
from tests.functional.v1_tab import V1, Tab, publish, v1_tab
from tests.service_process import ServiceProcess, receive_all, token

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def assert_next_is_live(publisher: RedisClient, user: str, *tabs: Tab) -> None:
    """Nothing else is on its way: what is published now is the next that each tab gets."""
    await publish(publisher, user, [-1])
    for tab in tabs:
        assert await tab.numbers(1) == [-1]


@pytest.mark.parametrize("missed", [0, 1, 199])
async def test_missed_ones_then_live_ones(
    service: ServiceProcess, publisher: RedisClient, missed: int
) -> None:
    """A tab gets what it has missed, in order and once, then live ones."""
    user = f"missed-{missed}"
    async with v1_tab(service, user) as tab:
        assert (tab.welcome["cursor"], tab.welcome["resumed"]) == (None, None)
        await publish(publisher, user, [0])
        (seen,) = await tab.notifications(1)
    ids = await publish(publisher, user, range(1, missed + 1))
    async with v1_tab(service, user, seen["id"]) as tab:
        assert tab.welcome["resumed"] is True
        assert tab.welcome["cursor"] == [seen["id"], *ids][-1]
        live = asyncio.create_task(publish(publisher, user, range(missed + 1, missed + 51)))
        frames = await tab.notifications(missed + 50)
        ids += await live
        assert [frame["id"] for frame in frames] == ids
        assert [frame["data"]["n"] for frame in frames] == list(range(1, missed + 51))
        assert [frame["prev"] for frame in frames] == [seen["id"], *ids[:-1]]
        await assert_next_is_live(publisher, user, tab)


async def test_replayed_as_it_was_live(service: ServiceProcess, publisher: RedisClient) -> None:
    """A replayed notification is to the byte the one that other tabs got live."""
    async with service.connect("bytes", subprotocols=[V1]) as there:
        await there.recv()
        cursor, *_ = await publish(publisher, "bytes", [0])
        for data in ({"s": "Räksmörgås 🦐 \u2028 \x00"}, {"type": "x", "n": 1.5e300}, {}):
            await publisher.publish_user_notification(
                "bytes", "e", data, correlation_id="c-1", source_service="s", collapse_key=str(data)
            )
        live = await receive_all(there, 4)
    async with service.connect("bytes", subprotocols=[V1], cursor=cursor) as tab:
        await tab.recv()
        assert await receive_all(tab, 3) == live[1:]
    frame = json.loads(live[1])
    assert [*frame] == [
        *("type", "id", "prev", "collapse_key", "timestamp", "event", "data"),
        *("correlation_id", "source_service"),
    ]


async def test_two_tabs_with_different_cursors(
    service: ServiceProcess, publisher: RedisClient
) -> None:
    """Each tab of a user goes on where it was itself, while a third one is there all the time."""
    async with v1_tab(service, "tabs") as third:
        ids = await publish(publisher, "tabs", range(10))
        async with (
            v1_tab(service, "tabs", ids[2]) as first,
            v1_tab(service, "tabs", ids[7]) as second,
        ):
            assert await first.numbers(7) == list(range(3, 10))
            assert await second.numbers(2) == [8, 9]
            assert await third.numbers(10) == list(range(10))
            await assert_next_is_live(publisher, "tabs", first, second, third)


async def test_cursor_of_a_welcome(service: ServiceProcess, publisher: RedisClient) -> None:
    """A tab that has got nothing at all resumes from what its `welcome` said."""
    await publish(publisher, "quiet", range(3))
    async with v1_tab(service, "quiet") as tab:
        cursor = tab.welcome["cursor"]
    await publish(publisher, "quiet", range(3, 6))
    async with v1_tab(service, "quiet", cursor) as tab:
        assert await tab.numbers(3) == [3, 4, 5]
        await assert_next_is_live(publisher, "quiet", tab)


@pytest.mark.parametrize("cursor", [None, ""])
async def test_without_a_cursor(
    service: ServiceProcess, publisher: RedisClient, cursor: str | None
) -> None:
    """Who gives no cursor is shown nothing of the past."""
    *_, newest = await publish(publisher, "first-visit", range(5))
    async with v1_tab(service, "first-visit", cursor) as tab:
        assert (tab.welcome["cursor"], tab.welcome["resumed"]) == (newest, None)
        await assert_next_is_live(publisher, "first-visit", tab)


@pytest.mark.parametrize(
    "query",
    [
        "token={token}&cursor={cursor}",
        "cursor={cursor}&token={token}",
        "cursor={escaped}&token={token}&a=b",
        "cursor={cursor}&cursor=5-5&token={token}",
    ],
)
async def test_cursor_beside_a_token(
    service: ServiceProcess, publisher: RedisClient, query: str
) -> None:
    """A cursor counts wherever it stands among the parameters; of two the first one does."""
    user = "beside"
    cursor, newest = await publish(publisher, user, range(2))
    escaped = "".join(f"%{byte:02x}" for byte in cursor.encode())
    target = query.format(token=token(user), cursor=cursor, escaped=escaped)
    async with websockets.connect(
        f"{service.url}?{target}", subprotocols=[Subprotocol(V1)], proxy=None
    ) as tab:
        assert json.loads(await tab.recv())["resumed"] is True
        assert json.loads(await tab.recv())["id"] == newest


async def test_plain_tabs_do_not_resume(service: ServiceProcess, publisher: RedisClient) -> None:
    """A plain tab's cursor is not looked at; live it gets what v1 tabs get, without the type."""
    ids = await publish(publisher, "plain", range(5))
    async with service.connect("plain", cursor=ids[0]) as tab:
        (live,) = await publish(publisher, "plain", [5])
        payload = json.loads(await tab.recv())
    assert payload["id"] == live
    assert [*payload] == ["id", "prev", "timestamp", "event", "data", "source_service"]


async def test_what_is_not_durable_is_not_replayed(
    service: ServiceProcess, publisher: RedisClient, redis: Redis
) -> None:
    """Raw payloads, and notifications with `durable=False`, reach only who is there."""
    cursor, *_ = await publish(publisher, "transient", [0])
    await publish(publisher, "transient", [1])
    for n in range(20):
        await publisher.publish_user_notification("transient", "typing", {"n": n}, durable=False)
        await redis.publish("ws:transient", '{"event":"raw"}')
    await publish(publisher, "transient", [2])
    async with v1_tab(service, "transient", cursor) as tab:
        assert await tab.numbers(2) == [1, 2]
        await publisher.publish_user_notification("transient", "typing", {"n": 3}, durable=False)
        frame = await tab.frame()
        assert (frame["data"], "id" in frame) == ({"n": 3}, False)
        await assert_next_is_live(publisher, "transient", tab)


async def test_idempotent_publish_is_shown_once(
    service: ServiceProcess, publisher: RedisClient
) -> None:
    """What a service publishes twice with one idempotency key is seen once, live and replayed."""

    async def publish_twice(n: int) -> None:
        for _ in range(2):
            await publisher.publish_user_notification(
                "twice", "e", {"n": n}, idempotency_key=f"batch-{n}"
            )

    async with v1_tab(service, "twice") as tab:
        await publish_twice(0)
        await publish_twice(1)
        (_, seen) = await tab.notifications(2)
        await assert_next_is_live(publisher, "twice", tab)
    await publish_twice(0)
    await publish_twice(2)
    async with v1_tab(service, "twice", seen["id"]) as tab:
        assert await tab.numbers(2) == [-1, 2]
        await assert_next_is_live(publisher, "twice", tab)


async def test_expired_ones_are_not_replayed(
    service: ServiceProcess, publisher: RedisClient, redis: Redis
) -> None:
    """What has expired is of no use to a tab that comes back; one that is there gets it live."""
    async with v1_tab(service, "expiry") as there:
        cursor, *_ = await publish(publisher, "expiry", [0])
        await publish(publisher, "expiry", range(1, 5), expires_in_s=0.001)
        await publish(publisher, "expiry", [5], expires_in_s=3600)
        await publish(publisher, "expiry", range(6, 9), expires_in_s=0.001)
        seconds, microseconds = await redis.time()
        while await redis.time() <= (seconds, microseconds + 1_000):
            pass
        assert await there.numbers(9) == list(range(9))
        async with v1_tab(service, "expiry", cursor) as back:
            assert await back.numbers(1) == [5]
            # The chain goes on behind those that are not shown.
            await assert_next_is_live(publisher, "expiry", back, there)


async def test_only_the_newest_update_is_replayed(
    service: ServiceProcess, redis_server: RedisServer
) -> None:
    """Of 1,000 updates of one thing a tab that comes back gets the newest, in its place."""
    async with RedisClient(
        client_id="test",
        redis_url=redis_server.url,
        history_limits=HistoryLimits(size=2_000),
    ) as publisher:
        cursor, *_ = await publish(publisher, "progress", [0])
        await publish(publisher, "progress", range(1, 900), collapse_key="batch-1")
        await publish(publisher, "progress", [900])
        await publish(publisher, "progress", range(901, 1001), collapse_key="batch-1")
        await publish(publisher, "progress", [1001])
        async with v1_tab(service, "progress", cursor) as tab:
            assert tab.welcome["resumed"] is True
            assert await tab.numbers(3) == [900, 1000, 1001]
            await assert_next_is_live(publisher, "progress", tab)


async def test_lost_subscription_connection(
    service: ServiceProcess, publisher: RedisClient, redis: Redis
) -> None:
    """What is published while the service is cut off from Redis reaches the open tabs after all."""
    async with v1_tab(service, "gap") as tab, service.connect("gap") as plain:
        for start in range(0, 50, 10):
            while (await redis.pubsub_numsub("ws:gap"))[0][1] == 0:
                pass
            await publish(publisher, "gap", range(start, start + 5))
            assert await redis.client_kill_filter(_type="pubsub") == 1
            await publish(publisher, "gap", range(start + 5, start + 10))
        assert await tab.numbers(50) == list(range(50))
        texts = await receive_all(plain, 50)
        assert [json.loads(text)["data"]["n"] for text in texts] == list(range(50))
        await assert_next_is_live(publisher, "gap", tab)


async def test_service_is_replaced(redis_server: RedisServer, publisher: RedisClient) -> None:
    """When the service is stopped and another started, tabs go on where they were."""
    users = [f"moving-{n}" for n in range(5)]
    opened = f'websocket_connections_opened_total{{dialect="{V1}"}}'
    positions: dict[str, tuple[str, int]] = {}
    last = 150  # fewer than are kept

    async def attend(service: ServiceProcess, user: str) -> str | None:
        """Handle what comes up to the last one, or to the end: why it came."""
        cursor, count = positions[user]
        async with v1_tab(service, user, cursor) as tab:
            assert tab.welcome["resumed"] is True
            while count < last:
                frame = await tab.frame()
                if frame["type"] == "going_away":
                    return str((await tab.frame())["error"]["code"])
                assert frame["data"]["n"] == count + 1
                count += 1
                positions[user] = (frame["id"], count)
        return None

    async def publish_up_to(n: int) -> None:
        while published[-1] < n:
            published.append(published[-1] + 1)
            for user in users:
                await publish(publisher, user, published[-1:])

    for user in users:
        (cursor,) = await publish(publisher, user, [0])
        positions[user] = (cursor, 0)
    published = [0]
    async with asyncio.TaskGroup() as tasks:
        async with ServiceProcess(redis_server.url) as service:
            attending = [tasks.create_task(attend(service, user)) for user in users]
            while (await service.metrics()).get(opened, 0) < len(users):
                pass
            await publish_up_to(50)
            publishing = tasks.create_task(publish_up_to(last - 1))
            assert await service.terminate() == 0
        assert await asyncio.gather(*attending) == ["SERVICE_UNAVAILABLE"] * len(users)
        await publishing
        async with ServiceProcess(redis_server.url) as service:
            await asyncio.gather(publish_up_to(last), *(attend(service, user) for user in users))
    assert [count for _, count in positions.values()] == [last] * len(users)
