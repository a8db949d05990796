"""What a reader of a user's history is told after a cursor."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from redis.asyncio import Redis

from huleedu_service_libs.history_pages import HistoryPage, Loss, Unproven
from huleedu_service_libs.notification_ids import NotificationId, is_origin
from huleedu_service_libs.notification_settings import HistoryLimits
from huleedu_service_libs.notifications import Notification
from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_server import RedisServer
from libs.huleedu_service_libs.tests.redis.conftest import Until
from libs.huleedu_service_libs.tests.redis.user_ids import USER_IDS

READ_AT_ONCE = 64  # entries, by the script
STRANGE_CURSORS = [
    "0-0",
    "1-0",
    "3-9223372036854775807",
    "999999999999999-9999999999999999999",
    "0-9999999999999999999",
]


def notification(number: int = 0, user_id: str = "t", **options: Any) -> Notification:
    return Notification(user_id=user_id, event_type="e", data={"n": number}, **options)


async def publish(client: RedisClient, *notifications: Notification) -> list[NotificationId]:
    receipts = await client.publish_notifications(notifications)
    return [receipt.id for receipt in receipts if receipt.id is not None]


def numbers(page: HistoryPage | Unproven) -> list[int]:
    assert isinstance(page, HistoryPage)
    return [json.loads(entry.payload)["data"]["n"] for entry in page.entries]


async def read_all(
    client: RedisClient, cursor: NotificationId, **limits: int
) -> tuple[list[int], list[HistoryPage]]:
    """All pages after the cursor, each begun where the one before ended."""
    pages = []
    while True:
        page = await client.history.after("t", cursor, **limits)
        assert isinstance(page, HistoryPage)
        pages.append(page)
        if page.complete:
            break
        assert page.position != cursor
        cursor = page.position
    return [number for page in pages for number in numbers(page)], pages


async def test_nothing_yet(client: RedisClient) -> None:
    """A user without a notification has a position all the same, the same for every reader."""
    origin = await client.history.newest("t")
    assert is_origin(origin)
    assert await client.history.newest("t") == origin
    assert await client.history.newest("another") != origin
    assert await client.history.after("t", origin) == HistoryPage(origin, origin, True, ())
    ids = await publish(client, notification(1), notification(2))
    assert await client.history.newest("t") == ids[1]
    page = await client.history.after("t", origin)
    assert numbers(page) == [1, 2]


async def test_after_each_cursor(client: RedisClient) -> None:
    """Whatever id is given, exactly what was published after it is returned, as it was."""
    async with client.subscribe("ws:t") as subscription:
        ids = await publish(client, *(notification(n) for n in range(10)))
        heard = [await anext(subscription) for _ in ids]
    for index, cursor in enumerate(ids):
        page = await client.history.after("t", cursor)
        assert isinstance(page, HistoryPage)
        assert [entry.payload for entry in page.entries] == heard[index + 1 :]
        assert [entry.id for entry in page.entries] == ids[index + 1 :]
        assert (page.newest, page.position, page.complete) == (ids[-1], ids[-1], True)


async def test_every_user_has_a_history_of_their_own(client: RedisClient) -> None:
    """Whatever characters a user id has, its history is that user's alone."""
    origins = {user_id: await client.history.newest(user_id) for user_id in USER_IDS}
    await publish(client, *(notification(n, user_id) for n, user_id in enumerate(USER_IDS)))
    for n, user_id in enumerate(USER_IDS):
        assert numbers(await client.history.after(user_id, origins[user_id])) == [n]
        kept = await client.history.kept(user_id, max_entries=10)
        assert [json.loads(entry.payload)["data"]["n"] for entry in kept] == [n]


async def test_trimmed(server: RedisServer) -> None:
    """What is older than all that is kept can't be continued; the one just before it can."""
    limits = HistoryLimits(size=5)
    async with RedisClient(client_id="test", redis_url=server.url, history_limits=limits) as client:
        origin = await client.history.newest("t")
        ids = await publish(client, *(notification(n) for n in range(10)))
        trimmed = Unproven(Loss.TRIMMED, ids[-1])
        for cursor in [origin, *ids[:4]]:
            assert await client.history.after("t", cursor) == trimmed
        # The oldest that is kept names it as its predecessor.
        assert numbers(await client.history.after("t", ids[4])) == [5, 6, 7, 8, 9]
        assert numbers(await client.history.after("t", ids[5])) == [6, 7, 8, 9]


async def test_lost(client: RedisClient, admin: Redis) -> None:
    """When Redis has lost everything no cursor is taken for a known one, whatever comes after."""
    origin = await client.history.newest("t")
    ids = await publish(client, *(notification(n) for n in range(5)))
    await admin.flushall()
    for cursor in [origin, *ids]:
        assert await client.history.after("t", cursor) == Unproven(Loss.LOST, None)

    new_origin = await client.history.newest("t")
    for cursor in [origin, *ids]:
        assert await client.history.after("t", cursor) == Unproven(Loss.LOST, new_origin)

    # The same offsets come again, and more.
    for n in range(8):
        newest = await publish(client, notification(n))
        for cursor in [origin, *ids]:
            assert await client.history.after("t", cursor) == Unproven(Loss.LOST, newest[0])
    assert numbers(await client.history.after("t", new_origin)) == list(range(8))


async def test_lost_before_the_first(client: RedisClient, admin: Redis) -> None:
    """Who waited for a user's first notification learns that Redis has lost the place."""
    origin = await client.history.newest("t")
    await admin.flushall()
    ids = await publish(client, notification(1))
    assert await client.history.after("t", origin) == Unproven(Loss.LOST, ids[0])


@pytest.mark.parametrize("cursor", STRANGE_CURSORS)
async def test_cursors_that_nobody_gave_out(client: RedisClient, cursor: str) -> None:
    """A made-up cursor proves nothing and breaks nothing."""
    assert isinstance(await client.history.after("t", NotificationId(cursor)), Unproven)
    ids = await publish(client, *(notification(n) for n in range(5)))
    unproven = await client.history.after("t", NotificationId(cursor))
    assert unproven == Unproven(Loss.LOST, ids[-1])


async def test_going_back_to_a_snapshot(
    client: RedisClient, admin: Redis, server: RedisServer
) -> None:
    """What Redis forgets by loading an old snapshot is not mistaken for what comes instead."""
    origin = await client.history.newest("t")
    ids = await publish(client, *(notification(n) for n in range(3)))
    await admin.save()
    lost = await publish(client, *(notification(n) for n in range(3, 23)))
    await server.kill()
    await server.launch()

    for cursor in lost:
        assert await client.history.after("t", cursor) == Unproven(Loss.LOST, ids[-1])
    assert numbers(await client.history.after("t", origin)) == [0, 1, 2]
    assert numbers(await client.history.after("t", ids[-1])) == []

    again = await publish(client, *(notification(n) for n in range(103, 123)))
    for cursor in lost:
        assert await client.history.after("t", cursor) == Unproven(Loss.LOST, again[-1])
    assert numbers(await client.history.after("t", ids[-1])) == list(range(103, 123))
    assert not {*lost} & {*again}


@pytest.mark.parametrize("max_entries", [1, 2, 7, READ_AT_ONCE, READ_AT_ONCE + 1, 129, 200])
async def test_pages_by_entries(client: RedisClient, max_entries: int) -> None:
    """Read page by page, everything comes once and in order, and the last page says so."""
    cursor = await client.history.newest("t")
    count = 2 * READ_AT_ONCE + 1
    await publish(client, *(notification(n) for n in range(count)))
    found, pages = await read_all(client, cursor, max_entries=max_entries)
    assert found == list(range(count))
    assert [len(page.entries) for page in pages[:-1]] == [max_entries] * (len(pages) - 1)
    assert len(pages) == -(-count // max_entries)


@pytest.mark.parametrize("max_bytes", [1, 400, 1000, 10_000, 1_000_000])
async def test_pages_by_bytes(client: RedisClient, max_bytes: int) -> None:
    """A page ends once it has so many bytes; each has one entry at least."""
    cursor = await client.history.newest("t")
    await publish(client, *(notification(n) for n in range(100)))
    found, pages = await read_all(client, cursor, max_bytes=max_bytes)
    assert found == list(range(100))
    for page in pages:
        *others, _ = (len(entry.payload) for entry in page.entries)
        assert sum(others) < max_bytes


async def test_default_pages(client: RedisClient) -> None:
    """A history of large notifications is read in pages of some 256 KiB."""
    cursor = await client.history.newest("t")
    large = Notification(user_id="t", event_type="e", data={"n": 1, "text": "x" * 60_000})
    await publish(client, *(large for _ in range(12)))
    found, pages = await read_all(client, cursor)
    assert [len(page.entries) for page in pages] == [5, 5, 2]
    assert len(found) == 12


async def test_expired_ones_are_left_out(client: RedisClient, admin: Redis, until: Until) -> None:
    """What has expired is not replayed, and nobody waits for it."""
    cursor = await client.history.newest("t")
    ids = await publish(
        client,
        notification(0, expires_in_s=0.001),
        notification(1),
        notification(2, expires_in_s=3600),
        notification(3, expires_in_s=0.001),
        notification(4, expires_in_s=0.001),
    )

    async def has_expired() -> bool:
        kept = await client.history.kept("t", max_entries=10)
        seconds, microseconds = await admin.time()
        now = datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=microseconds)
        return all(
            entry.expires_at is None or entry.expires_at <= now
            for entry in kept
            if entry.id != ids[2]
        )

    await until(has_expired)
    page = await client.history.after("t", cursor)
    assert numbers(page) == [1, 2]
    assert isinstance(page, HistoryPage)
    assert (page.position, page.complete) == (ids[-1], True)
    assert numbers(await client.history.after("t", ids[2])) == []
    found, pages = await read_all(client, cursor, max_entries=1)
    assert found == [1, 2]
    assert len(pages) == 5


async def test_kept_entries(client: RedisClient) -> None:
    """All that is kept can be seen, with the time from which on it is not replayed."""
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    ids = await publish(
        client,
        notification(0),
        notification(1, expires_in_s=0.001),
        notification(2, expires_in_s=100, collapse_key="k"),
        notification(3, collapse_key="k"),
    )
    after = datetime.now(UTC)
    kept = await client.history.kept("t", max_entries=100)
    assert [entry.id for entry in kept] == ids
    forever, short, long, collapsing = kept
    assert (forever.expires_at, collapsing.expires_at) == (None, None)
    assert short.expires_at is not None
    assert long.expires_at is not None
    assert before <= short.expires_at - timedelta(milliseconds=1) <= after
    assert before <= long.expires_at - timedelta(seconds=100) <= after
    assert await client.history.kept("t", max_entries=2) == kept[-2:]
    assert await client.history.kept("nobody", max_entries=2) == []


async def test_collapsing(client: RedisClient) -> None:
    """Of several notifications with one collapse key only the newest is replayed, in its place."""
    cursor = await client.history.newest("t")
    keys = ["a", None, "b", "a", None, "a", "b", "c"]
    ids = await publish(client, *(notification(n, collapse_key=key) for n, key in enumerate(keys)))
    assert numbers(await client.history.after("t", cursor)) == [1, 4, 5, 6, 7]
    assert numbers(await client.history.after("t", ids[4])) == [5, 6, 7]
    assert numbers(await client.history.after("t", ids[5])) == [6, 7]


@pytest.mark.parametrize("max_entries", [1, 2, 3, 7, 8])
async def test_collapsing_across_pages(client: RedisClient, max_entries: int) -> None:
    """Also page by page nothing comes that has a newer one of its collapse key behind it."""
    cursor = await client.history.newest("t")
    keys = ["a", None, "b", "a", None, "a", "b", "c"]
    await publish(client, *(notification(n, collapse_key=key) for n, key in enumerate(keys)))
    found, _ = await read_all(client, cursor, max_entries=max_entries)
    assert found == [1, 4, 5, 6, 7]


@pytest.mark.parametrize("distance", [READ_AT_ONCE - 1, READ_AT_ONCE, 3 * READ_AT_ONCE - 2])
async def test_collapsing_over_a_long_history(client: RedisClient, distance: int) -> None:
    """However far behind the newer one lies, the older one does not come."""
    cursor = await client.history.newest("t")
    await publish(
        client,
        notification(0, collapse_key="k"),
        *(notification(n) for n in range(1, distance)),
        notification(distance, collapse_key="k"),
    )
    for max_entries in (1, 64, 1000):
        page = await client.history.after("t", cursor, max_entries=max_entries)
        assert isinstance(page, HistoryPage)
        assert 0 not in numbers(page)
    found, _ = await read_all(client, cursor, max_entries=50)
    assert found == list(range(1, distance + 1))


async def test_collapsed_into_one_that_has_expired(client: RedisClient, until: Until) -> None:
    """A newer one replaces an older one for good, also when it has expired itself."""
    cursor = await client.history.newest("t")
    await publish(
        client,
        notification(0, collapse_key="k"),
        notification(1),
        notification(2, collapse_key="k", expires_in_s=0.001),
    )

    async def has_expired() -> bool:
        return numbers(await client.history.after("t", cursor)) == [1]

    await until(has_expired)


async def test_full_page_at_the_end(client: RedisClient) -> None:
    """A full page at the end of the history is the last one."""
    cursor = await client.history.newest("t")
    await publish(client, *(notification(n) for n in range(3)))
    page = await client.history.after("t", cursor, max_entries=3)
    assert isinstance(page, HistoryPage)
    assert page.complete
    page = await client.history.after("t", cursor, max_entries=2)
    assert isinstance(page, HistoryPage)
    assert not page.complete
