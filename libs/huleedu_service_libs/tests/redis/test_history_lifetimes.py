"""How much of a history is kept, for how long, and what happens when keys are lost."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from huleedu_service_libs.history_pages import HistoryPage, Loss, Unproven
from huleedu_service_libs.notification_ids import NotificationId, is_origin
from huleedu_service_libs.notification_settings import HistoryLimits
from huleedu_service_libs.notifications import Notification
from huleedu_service_libs.redis_channels import UserKeys, user_channel
from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_server import RedisServer
from libs.huleedu_service_libs.tests.redis.conftest import StartServer, Until

KEYS = UserKeys.of(user_channel("t"))
DAY_S = 86_400
HISTORY_TTLS = range(DAY_S - 30, DAY_S + 1)
LAST_TTLS = range(30 * DAY_S - 30, 30 * DAY_S + 1)
NODE_ENTRIES = 100
PUBLISHES_PER_TRIM = 16


def notification(number: int = 0, **options: Any) -> Notification:
    return Notification(user_id="t", event_type="e", data={"n": number}, **options)


PUBLISH: dict[str, Callable[[RedisClient, int], Awaitable[object]]] = {
    "one": lambda client, n: client.publish_notification(notification(n)),
    "several": lambda client, n: client.publish_notifications([notification(n), notification(n)]),
    "collapsing": lambda client, n: client.publish_notification(notification(n, collapse_key="k")),
    "idempotent": lambda client, n: client.publish_notification(
        notification(n, idempotency_key=f"{n}")
    ),
}
Publish = Callable[[RedisClient, int], Awaitable[object]]


@pytest.fixture(params=PUBLISH)
def publish(request: pytest.FixtureRequest) -> Publish:
    return PUBLISH[request.param]


@pytest.fixture
async def another(server: RedisServer) -> AsyncIterator[RedisClient]:
    async with RedisClient(client_id="another", redis_url=server.url) as started:
        yield started


async def ttls(admin: Redis) -> tuple[int, int]:
    return await admin.ttl(KEYS.history), await admin.ttl(KEYS.last)


async def numbers(client: RedisClient, cursor: NotificationId) -> list[int]:
    page = await client.history.after("t", cursor)
    assert isinstance(page, HistoryPage)
    return [json.loads(entry.payload)["data"]["n"] for entry in page.entries]


async def test_lifetimes(client: RedisClient, admin: Redis, publish: Publish) -> None:
    """A history lives for a day after the last notification, the newest id for a month."""
    await publish(client, 1)
    history, last = await ttls(admin)
    assert history in HISTORY_TTLS
    assert last in LAST_TTLS


async def test_lifetime_of_an_origin(client: RedisClient, admin: Redis) -> None:
    """The position of a user without a notification is remembered for a month."""
    await client.history.newest("t")
    assert await admin.ttl(KEYS.last) in LAST_TTLS
    await admin.expire(KEYS.last, 1000)
    await client.history.newest("t")
    assert await admin.ttl(KEYS.last) <= 1000


async def test_renewed_now_and_then(
    client: RedisClient, another: RedisClient, admin: Redis, publish: Publish
) -> None:
    """Each publisher renews the lifetimes with its first notification, not with all of them."""
    await publish(client, 1)
    await admin.expire(KEYS.history, 1000)
    await admin.expire(KEYS.last, 1000)
    await publish(client, 2)
    assert max(await ttls(admin)) <= 1000
    await publish(another, 3)
    history, last = await ttls(admin)
    assert history in HISTORY_TTLS
    assert last in LAST_TTLS


async def test_renewed_in_time(server: RedisServer, admin: Redis, until: Until) -> None:
    """Somebody who goes on publishing renews the lifetimes long before they end."""
    limits = HistoryLimits(ttl_s=2, id_retention_s=1000)
    async with RedisClient(client_id="test", redis_url=server.url, history_limits=limits) as client:
        await client.publish_notification(notification())
        await admin.expire(KEYS.history, 100_000)
        await admin.expire(KEYS.last, 100_000)

        async def is_renewed() -> bool:
            await client.publish_notification(notification())
            return max(await ttls(admin)) < 100_000 - 100

        await until(is_renewed)
        history, last = await ttls(admin)
        assert history <= 2 + 1
        assert 900 < last <= 1000 + 1


async def test_newest_id_outlives_the_history(
    server: RedisServer, admin: Redis, until: Until
) -> None:
    """When the history has expired the chain goes on, and who had seen all of it misses nothing."""
    limits = HistoryLimits(ttl_s=1, id_retention_s=1000)
    async with RedisClient(client_id="test", redis_url=server.url, history_limits=limits) as client:
        origin = await client.history.newest("t")
        receipts = [await client.publish_notification(notification(n)) for n in range(3)]
        ids = [receipt.id for receipt in receipts if receipt.id is not None]

        async def has_expired() -> bool:
            return not await admin.exists(KEYS.history)

        await until(has_expired)
        assert await client.history.newest("t") == ids[-1]
        assert await numbers(client, ids[-1]) == []
        for cursor in [origin, *ids[:-1]]:
            assert await client.history.after("t", cursor) == Unproven(Loss.TRIMMED, ids[-1])

    async with RedisClient(client_id="another", redis_url=server.url) as client:
        await client.publish_notification(notification(3))
        assert await numbers(client, ids[-1]) == [3]
        newest = await client.history.newest("t")
        assert newest.startswith("4-")
        for cursor in [origin, *ids[:-1]]:
            assert await client.history.after("t", cursor) == Unproven(Loss.TRIMMED, newest)
        assert (await ttls(admin))[0] in HISTORY_TTLS


LOSSES: dict[str, list[str]] = {
    "history": [KEYS.history],
    "last": [KEYS.last],
    "both": [KEYS.history, KEYS.last],
}


@pytest.mark.parametrize("lost", LOSSES)
async def test_lifetimes_after_a_loss(
    client: RedisClient, admin: Redis, publish: Publish, lost: str
) -> None:
    """Keys that come anew have a lifetime, whatever was lost, when, and by whom."""
    await publish(client, 1)
    await admin.delete(*LOSSES[lost])
    await publish(client, 2)
    history, last = await ttls(admin)
    assert history in HISTORY_TTLS
    assert last in LAST_TTLS


async def test_lifetimes_after_losing_everything(
    client: RedisClient, admin: Redis, publish: Publish
) -> None:
    """So do they where a reader comes back before the publisher."""
    await publish(client, 1)
    await admin.flushall()
    assert is_origin(await client.history.newest("t"))
    await publish(client, 2)
    assert (await ttls(admin))[0] in HISTORY_TTLS
    assert (await ttls(admin))[1] > 0


async def test_newest_id_is_lost(client: RedisClient, admin: Redis) -> None:
    """Without the key of the newest id the history still knows it: nothing is missed."""
    receipts = [await client.publish_notification(notification(n)) for n in range(3)]
    ids = [receipt.id for receipt in receipts if receipt.id is not None]
    await admin.delete(KEYS.last)
    assert await numbers(client, ids[0]) == [1, 2]
    assert await numbers(client, ids[2]) == []
    assert await client.history.newest("t") == ids[2]
    assert await admin.ttl(KEYS.last) in LAST_TTLS
    await admin.delete(KEYS.last)
    await client.publish_notification(notification(3))
    assert await numbers(client, ids[0]) == [1, 2, 3]
    assert (await client.history.newest("t")).startswith("4-")


async def test_history_is_lost(client: RedisClient, admin: Redis) -> None:
    """Without the history the chain goes on; who was behind is told, who was not misses nothing."""
    receipts = [await client.publish_notification(notification(n)) for n in range(3)]
    ids = [receipt.id for receipt in receipts if receipt.id is not None]
    await admin.delete(KEYS.history)
    assert await client.history.after("t", ids[1]) == Unproven(Loss.TRIMMED, ids[2])
    assert await numbers(client, ids[2]) == []
    newest = (await client.publish_notification(notification(3))).id
    assert await client.history.after("t", ids[1]) == Unproven(Loss.TRIMMED, newest)
    assert await numbers(client, ids[2]) == [3]


@pytest.mark.parametrize("is_behind", [True, False])
async def test_both_are_lost(client: RedisClient, admin: Redis, *, is_behind: bool) -> None:
    """Without either everybody is told that Redis has lost its place."""
    receipts = [await client.publish_notification(notification(n)) for n in range(3)]
    cursor = receipts[0 if is_behind else 2].id
    assert cursor is not None
    await admin.delete(KEYS.history, KEYS.last)
    newest = (await client.publish_notification(notification(3))).id
    assert await client.history.after("t", cursor) == Unproven(Loss.LOST, newest)


async def test_emptied_history(client: RedisClient, admin: Redis) -> None:
    """A history of which all entries were deleted takes new ones."""
    for keys in ([], [KEYS.last]):
        receipt = await client.publish_notification(notification(1))
        await admin.xtrim(KEYS.history, maxlen=0, approximate=False)
        await admin.delete("nothing", *keys)
        await client.publish_notification(notification(2))
        page = await client.history.after("t", NotificationId(str(receipt.id)))
        assert isinstance(page, Unproven if keys else HistoryPage)
        assert await admin.xlen(KEYS.history) == 1


@pytest.mark.parametrize("size", [1, 2, 5, 99, 100])
async def test_small_histories_are_trimmed_exactly(
    server: RedisServer, admin: Redis, publish: Publish, size: int
) -> None:
    """Up to a hundred notifications, exactly so many are kept: the newest."""
    limits = HistoryLimits(size=size)
    async with RedisClient(client_id="test", redis_url=server.url, history_limits=limits) as client:
        for n in range(size + 5):
            await publish(client, n)
            assert await admin.xlen(KEYS.history) <= size
        kept = await client.history.kept("t", max_entries=1000)
        assert len(kept) == size
        assert kept[-1].id == await client.history.newest("t")


@pytest.mark.parametrize("size", [101, 200, 333])
@pytest.mark.parametrize("text", ["", "x" * 2000], ids=["small", "2 kB"])
async def test_large_histories_are_trimmed_by_the_node(
    server: RedisServer, admin: Redis, size: int, text: str
) -> None:
    """Above a hundred at least so many are kept, and at most a stream node and fifteen more."""
    limits = HistoryLimits(size=size)
    batch = [
        Notification(user_id="t", event_type="e", data={"n": n, "text": text}) for n in range(7)
    ]
    lengths = []
    async with RedisClient(client_id="test", redis_url=server.url, history_limits=limits) as client:
        for _ in range(2 * size // len(batch)):
            await client.publish_notifications(batch)
            lengths.append(await admin.xlen(KEYS.history))
    assert max(lengths) <= size + NODE_ENTRIES + PUBLISHES_PER_TRIM - 1
    filled = next(index for index, length in enumerate(lengths) if length >= size)
    assert min(lengths[filled:]) >= size
    assert max(lengths) < len(lengths) * len(batch)


async def test_restart_with_persistence(start_server: StartServer) -> None:
    """A Redis that writes to disk continues every chain after a restart."""
    async with (
        start_server(options={"appendonly": "yes", "appendfsync": "always"}) as server,
        RedisClient(client_id="test", redis_url=server.url) as client,
    ):
        origin = await client.history.newest("t")
        await client.publish_notifications([notification(n) for n in range(40)])
        await server.kill()
        await server.launch()
        await client.publish_notifications([notification(n) for n in range(40, 80)])
        assert await numbers(client, origin) == list(range(80))
