"""Publishing the same thing twice."""

import asyncio
import json

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from huleedu_service_libs.notification_settings import HistoryLimits
from huleedu_service_libs.notifications import Notification, NotificationReceipt
from huleedu_service_libs.redis_channels import UserKeys, user_channel
from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_server import RedisServer
from libs.huleedu_service_libs.tests.redis.conftest import Until
from libs.huleedu_service_libs.tests.redis.user_ids import USER_IDS


def notification(number: int, key: str | None = "job-1", user_id: str = "t") -> Notification:
    return Notification(user_id=user_id, event_type="e", data={"n": number}, idempotency_key=key)


async def kept_numbers(client: RedisClient, user_id: str = "t") -> list[int]:
    kept = await client.history.kept(user_id, max_entries=1000)
    return [json.loads(entry.payload)["data"]["n"] for entry in kept]


async def test_duplicate(client: RedisClient) -> None:
    """A repeated publish with one idempotency key changes nothing and returns the first id."""
    async with client.subscribe("ws:t") as subscription:
        first = await client.publish_notification(notification(1))
        again = await client.publish_notification(notification(2))
        assert again == NotificationReceipt(first.id, receivers=0, duplicate=True)
        other = await client.publish_notification(notification(3, "job-2"))
        assert not other.duplicate
        heard = [json.loads(await anext(subscription)) for _ in range(2)]
    assert [published["data"]["n"] for published in heard] == [1, 3]
    assert heard[1]["prev"] == first.id
    assert await kept_numbers(client) == [1, 3]


async def test_receivers_of_a_duplicate(client: RedisClient) -> None:
    """A duplicate was handed to nobody, also where the first was."""
    async with client.subscribe("ws:t"):
        for expected in (1, 0, 0):
            received = await client.publish_user_notification("t", "e", {}, idempotency_key="job-1")
            assert received == expected


async def test_concurrent_duplicates(server: RedisServer) -> None:
    """Many services that publish the same at once publish it once, and all learn its id."""

    async def publish(number: int) -> list[NotificationReceipt]:
        async with RedisClient(client_id=f"service-{number}", redis_url=server.url) as publisher:
            return [
                *await asyncio.gather(
                    *(publisher.publish_notification(notification(n)) for n in range(10))
                ),
                *await publisher.publish_notifications([notification(n) for n in range(10)]),
            ]

    async with RedisClient(client_id="reader", redis_url=server.url) as reader:
        by_publisher = await asyncio.gather(*(publish(number) for number in range(5)))
        receipts = [receipt for some in by_publisher for receipt in some]
        assert [receipt.duplicate for receipt in receipts].count(False) == 1
        kept = await reader.history.kept("t", max_entries=1000)
    assert {receipt.id for receipt in receipts} == {entry.id for entry in kept}
    assert len(kept) == 1


async def test_every_user_has_keys_of_their_own(client: RedisClient) -> None:
    """The same key for another user, whatever they are called, is no duplicate."""
    for round_, expected in ((1, False), (2, True)):
        receipts = await client.publish_notifications(
            [notification(round_, "a:{b}", user_id) for user_id in USER_IDS]
        )
        assert {receipt.duplicate for receipt in receipts} == {expected}
    for user_id in USER_IDS:
        assert await kept_numbers(client, user_id) == [1]


async def test_key_of_any_characters(client: RedisClient) -> None:
    """A key is compared exactly, whatever characters it has."""
    keys = ["a", "A", "a ", "a:", ":a", "{", "{}", "*", "å", "a\u030a", "\x00", "\r\n"]
    for expected in (False, True):
        receipts = [await client.publish_notification(notification(1, key)) for key in keys]
        assert [receipt.duplicate for receipt in receipts] == [expected] * len(keys)


async def test_expired_key(server: RedisServer, admin: Redis, until: Until) -> None:
    """Once a key is forgotten, the same publish is a new one."""
    limits = HistoryLimits(idempotency_ttl_s=1)
    key = UserKeys.of(user_channel("t")).idempotency("job-1")
    async with RedisClient(client_id="test", redis_url=server.url, history_limits=limits) as client:
        first = await client.publish_notification(notification(1))

        async def is_forgotten() -> bool:
            return not await admin.exists(key)

        await until(is_forgotten)
        again = await client.publish_notification(notification(2))
        assert not again.duplicate
        assert again.id != first.id
        assert await kept_numbers(client) == [1, 2]


async def test_lifetime_of_a_key(client: RedisClient, admin: Redis) -> None:
    """A key is remembered for a day from its first use; a duplicate does not prolong that."""
    key = UserKeys.of(user_channel("t")).idempotency("job-1")
    await client.publish_notification(notification(1))
    assert 86_390 < await admin.ttl(key) <= 86_400
    await admin.expire(key, 1000)
    assert (await client.publish_notification(notification(2))).duplicate
    assert await admin.ttl(key) <= 1000


async def test_refused_publish_uses_no_key(client: RedisClient, admin: Redis) -> None:
    """A publish that Redis refuses can be repeated with its key."""
    await client.publish_notification(notification(0, None))
    history = UserKeys.of(user_channel("t")).history
    await admin.delete(history)
    await admin.rpush(history, "no stream")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await client.publish_notification(notification(1))
    await admin.delete(history)
    assert not (await client.publish_notification(notification(1))).duplicate
