"""What somebody else has put into a history by hand."""

import json
from typing import Any

import pytest
from redis.asyncio import Redis

from huleedu_service_libs.history_pages import HistoryPage, Loss, Unproven
from huleedu_service_libs.notification_ids import NotificationId
from huleedu_service_libs.notifications import Notification
from huleedu_service_libs.redis_channels import UserKeys, user_channel
from huleedu_service_libs.redis_client import RedisClient

KEYS = UserKeys.of(user_channel("t"))
FOREIGN: dict[str, dict[Any, Any]] = {
    "other fields": {"event": "e"},
    "a payload": {"d": '{"event":"e","data":{}}'},
    "no UTF-8": {b"d": b"\xff", b"\xfe": b"\x00"},
    "our fields": {"d": "no JSON", "k": "key", "x": "tomorrow", "o": "0-1"},
    "another's id": {"d": '{"id":"1-1","prev":null,"event":"e","data":{}}'},
}


@pytest.fixture(params=FOREIGN)
def fields(request: pytest.FixtureRequest) -> dict[Any, Any]:
    return FOREIGN[request.param]


async def publish(client: RedisClient, number: int, **options: Any) -> NotificationId:
    receipt = await client.publish_notification(
        Notification(user_id="t", event_type="e", data={"n": number}, **options)
    )
    assert receipt.id is not None
    return receipt.id


async def numbers(client: RedisClient, cursor: NotificationId) -> list[int]:
    page = await client.history.after("t", cursor)
    assert isinstance(page, HistoryPage)
    assert page.complete
    return [json.loads(entry.payload)["data"]["n"] for entry in page.entries]


async def test_reading_passes_over_it(
    client: RedisClient, admin: Redis, fields: dict[Any, Any]
) -> None:
    """Readers do not see a foreign entry at the end, and stay where they are."""
    ids = [await publish(client, n) for n in range(3)]
    await admin.xadd(KEYS.history, fields)
    assert await numbers(client, ids[0]) == [1, 2]
    page = await client.history.after("t", ids[0])
    assert isinstance(page, HistoryPage)
    assert (page.newest, page.position) == (ids[2], ids[2])
    assert await numbers(client, ids[2]) == []
    assert await client.history.newest("t") == ids[2]
    assert [entry.id for entry in await client.history.kept("t", max_entries=10)] == ids


async def test_one_that_fits_between(
    client: RedisClient, admin: Redis, fields: dict[Any, Any]
) -> None:
    """A foreign entry among the others changes nothing for anybody."""
    ids = [await publish(client, 0)]
    await admin.xadd(KEYS.history, fields, id=f"1-{2**64 - 1}")
    ids += [await publish(client, n) for n in (1, 2)]
    assert await numbers(client, ids[0]) == [1, 2]
    assert [entry.id for entry in await client.history.kept("t", max_entries=10)] == ids
    for max_entries in (1, 2):
        page = await client.history.after("t", ids[0], max_entries=max_entries)
        assert isinstance(page, HistoryPage)
        assert len(page.entries) == max_entries


@pytest.mark.parametrize("options", [{}, {"collapse_key": "k"}], ids=["plain", "collapsing"])
async def test_publishing_goes_on(
    client: RedisClient, admin: Redis, fields: dict[Any, Any], options: dict[str, Any]
) -> None:
    """A foreign entry ahead of the chain goes with what was kept, and who needed that is told."""
    ids = [await publish(client, n) for n in range(3)]
    await admin.xadd(KEYS.history, fields)
    ids += [await publish(client, n, **options) for n in (3, 4)]
    assert [int(id_.partition("-")[0]) for id_ in ids] == [1, 2, 3, 4, 5]
    assert [entry.id for entry in await client.history.kept("t", max_entries=10)] == ids[3:]
    assert await client.history.after("t", ids[1]) == Unproven(Loss.TRIMMED, ids[-1])
    assert await numbers(client, ids[2]) == ([4] if options else [3, 4])
    assert await admin.ttl(KEYS.history) > 0


async def test_in_a_batch(client: RedisClient, admin: Redis, fields: dict[Any, Any]) -> None:
    """It does not disturb those who are published to in the same call."""
    await publish(client, 0)
    await admin.xadd(KEYS.history, fields)
    receipts = await client.publish_notifications(
        [
            Notification(user_id=user_id, event_type="e", data={"n": n})
            for n in range(1, 4)
            for user_id in ("t", "another")
        ]
    )
    offsets = [int(str(receipt.id).partition("-")[0]) for receipt in receipts]
    assert offsets == [2, 1, 3, 2, 4, 3]


async def test_deleted_again(client: RedisClient, admin: Redis) -> None:
    """The stream remembers the id of an entry that was deleted; publishing goes on all the same."""
    first = await publish(client, 0)
    await admin.xdel(KEYS.history, await admin.xadd(KEYS.history, {"a": "b"}))
    assert await numbers(client, first) == []
    await publish(client, 1)
    assert await numbers(client, first) == [1]


async def test_before_the_first(client: RedisClient, admin: Redis, fields: dict[Any, Any]) -> None:
    """A user's first notification has offset 1, whatever is in the stream already."""
    await admin.xadd(KEYS.history, fields)
    origin = await client.history.newest("t")
    assert origin.startswith("0-")
    await publish(client, 1)
    assert await numbers(client, origin) == [1]


async def test_newest_id_is_lost_too(
    client: RedisClient, admin: Redis, fields: dict[Any, Any]
) -> None:
    """Where nothing but a foreign entry could tell the newest id, the chain begins anew."""
    cursor = await publish(client, 0)
    await admin.xadd(KEYS.history, fields)
    await admin.delete(KEYS.last)
    assert await client.history.after("t", cursor) == Unproven(Loss.LOST, None)
    newest = await publish(client, 1)
    assert newest.startswith("1-")
    assert await client.history.after("t", cursor) == Unproven(Loss.LOST, newest)


async def test_newest_id_is_no_id(client: RedisClient, admin: Redis) -> None:
    """A newest id that is none is replaced by that of the history."""
    cursor = await publish(client, 0)
    await admin.set(KEYS.last, "no id")
    await publish(client, 1)
    assert await numbers(client, cursor) == [1]


async def test_payload_that_is_no_text(client: RedisClient, admin: Redis) -> None:
    """An entry of ours is handed on as the bytes that it holds."""
    cursor = await publish(client, 0)
    payload = b'{"id":"2-1","prev":"%b","event":"\xff"}' % cursor.encode()
    await admin.xadd(KEYS.history, {"d": payload}, id="2-1")
    await admin.set(KEYS.last, "2-1")
    page = await client.history.after("t", cursor)
    assert isinstance(page, HistoryPage)
    assert [entry.payload for entry in page.entries] == [payload]
