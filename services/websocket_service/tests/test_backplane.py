"""What the service expects of a backplane: of Redis, and of its twin in the tests alike."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import pytest
from redis.asyncio import Redis

from huleedu_service_libs.history_pages import HistoryPage, Loss, Unproven
from huleedu_service_libs.notification_ids import NotificationId, is_origin
from huleedu_service_libs.notifications import Notification
from huleedu_service_libs.redis_channels import UserKeys, user_channel
from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_server import RedisServer
from huleedu_service_libs.testing.polling import until
from services.websocket_service.continuity import Link
from services.websocket_service.implementations.backplane import RedisBackplane
from services.websocket_service.protocols import (
    BackplaneProtocol,
    BackplaneUnavailableError,
    PayloadsProtocol,
)
from services.websocket_service.publication import Publication
from services.websocket_service.tests.fakes import GIVE_UP_AFTER_S, MemoryBackplane


class Notify(Protocol):
    async def __call__(
        self,
        *events: str,
        user_id: str = "a",
        collapse_key: str | None = None,
        expired: bool = False,
    ) -> list[NotificationId]:
        """The ids of durable notifications, one for each event."""
        ...


@dataclass
class Line:
    """A backplane, and what happens on its other side."""

    backplane: BackplaneProtocol
    publish: Callable[[str, bytes], Awaitable[int]]
    """To a user."""
    notify: Notify
    trim: Callable[[int], Awaitable[None]]
    """Keep so many of user a's notifications."""
    flush: Callable[[], Awaitable[None]]


async def memory_line() -> AsyncIterator[Line]:
    backplane = MemoryBackplane()

    async def publish(user_id: str, payload: bytes) -> int:
        return backplane.publish(user_id, payload)

    async def notify(
        *events: str,
        user_id: str = "a",
        collapse_key: str | None = None,
        expired: bool = False,
    ) -> list[NotificationId]:
        ids = [
            backplane.notify(user_id, collapse_key=collapse_key, event=event) for event in events
        ]
        if expired:
            backplane.histories[user_id].expired.update(ids)
        return ids

    async def trim(kept: int) -> None:
        entries = backplane.histories["a"].entries
        del entries[: len(entries) - kept]

    async def flush() -> None:
        backplane.histories.clear()

    yield Line(backplane, publish, notify, trim, flush)


async def redis_line() -> AsyncIterator[Line]:
    async with (
        RedisServer() as server,
        Redis(port=server.port) as redis,
        RedisClient(client_id="test", redis_url=server.url, payload_type=Publication) as client,
    ):
        backplane = RedisBackplane(client)

        async def publish(user_id: str, payload: bytes) -> int:
            return await client.publish(backplane.get_user_channel(user_id), payload)

        async def notify(
            *events: str,
            user_id: str = "a",
            collapse_key: str | None = None,
            expired: bool = False,
        ) -> list[NotificationId]:
            receipts = await client.publish_notifications(
                [
                    Notification(
                        user_id=user_id,
                        event_type=event,
                        data={},
                        collapse_key=collapse_key,
                        expires_in_s=0.001 if expired else None,
                    )
                    for event in events
                ]
            )
            if expired:
                published_at = await redis.time()
                while await redis.time() <= (published_at[0], published_at[1] + 2_000):
                    pass
            return [receipt.id for receipt in receipts if receipt.id is not None]

        async def trim(kept: int) -> None:
            await redis.xtrim(
                UserKeys.of(user_channel("a")).history, maxlen=kept, approximate=False
            )

        async def flush() -> None:
            await redis.flushall()

        yield Line(backplane, publish, notify, trim, flush)


@pytest.fixture(params=[memory_line, redis_line], ids=["memory", "redis"])
async def line(request: pytest.FixtureRequest) -> AsyncIterator[Line]:
    async for opened in request.param():
        yield opened


async def hear(payloads: PayloadsProtocol, count: int) -> list[bytes]:
    """The next payloads, in however many batches they come."""
    heard: list[bytes] = []
    async with asyncio.timeout(GIVE_UP_AFTER_S):
        while len(heard) < count:
            heard += await payloads.next_batch()
    return heard


async def test_entered_means_heard(line: Line) -> None:
    """What is published once a subscription is there arrives, in order and to the byte."""
    channel = line.backplane.get_user_channel("a")
    sent = [b"%d" % n for n in range(20)] + [b"", b"\xff\x00", "🦐".encode()]
    async with line.backplane.subscribe(channel) as payloads:
        for payload in sent:
            assert await line.publish("a", payload) == 1
        assert await hear(payloads, len(sent)) == sent


@pytest.mark.parametrize("user", ["a:b", "*", "}", "a b", "a\nb", "🦐", "x" * 10_000])
async def test_users_do_not_mix(line: Line, user: str) -> None:
    """Whatever a user is called, a notification reaches that user alone."""
    backplane = line.backplane
    async with (
        backplane.subscribe(backplane.get_user_channel(user)) as theirs,
        backplane.subscribe(backplane.get_user_channel("a")) as others,
    ):
        assert await line.publish("a", b"for a") == 1
        assert await line.publish(user, b"for the user") == 1
        assert await hear(theirs, 1) == [b"for the user"]
        assert await hear(others, 1) == [b"for a"]


async def test_payload_knows_when_it_came(line: Line) -> None:
    """The time that a payload spends in the process can be measured."""
    started_at = asyncio.get_running_loop().time()
    async with line.backplane.subscribe(line.backplane.get_user_channel("a")) as payloads:
        await line.publish("a", b"x")
        (payload,) = await hear(payloads, 1)
    assert isinstance(payload, Publication)
    assert started_at <= payload.received_at <= asyncio.get_running_loop().time()


async def replay(backplane: BackplaneProtocol, cursor: NotificationId) -> list[bytes]:
    """All that followed the cursor, page after page."""
    payloads: list[bytes] = []
    while True:
        page = await backplane.after("a", cursor)
        assert isinstance(page, HistoryPage)
        assert page.newest == await backplane.newest("a")
        payloads += [entry.payload for entry in page.entries]
        cursor = page.position
        if page.complete:
            assert cursor == page.newest
            return payloads


async def test_history_holds_what_was_heard(line: Line) -> None:
    """From wherever one looks, what followed is in the history, to the byte as it was heard."""
    backplane = line.backplane
    origin = await backplane.newest("a")
    assert is_origin(origin)
    assert await replay(backplane, origin) == []
    async with backplane.subscribe(backplane.get_user_channel("a")) as payloads:
        ids = await line.notify(*"abcdefg")
        heard = await hear(payloads, len(ids))
    assert [Publication(payload).link for payload in heard] == [
        Link(id_, prev) for id_, prev in zip(ids, [None, *ids], strict=False)
    ]
    for missed, cursor in enumerate([origin, *ids]):
        assert await replay(backplane, cursor) == heard[missed:]


async def test_history_leaves_out_what_is_outdated(line: Line) -> None:
    """Neither what has expired is replayed nor what a newer one has replaced."""
    backplane = line.backplane
    origin = await backplane.newest("a")
    await line.notify("1", "2", "3", collapse_key="progress")
    await line.notify("x")
    await line.notify("y", "z", expired=True)
    await line.notify("4", collapse_key="progress")
    await line.notify("5", collapse_key="other")
    await line.notify("w", expired=True)
    replayed = [json.loads(payload)["event"] for payload in await replay(backplane, origin)]
    assert replayed == ["x", "4", "5"]


async def test_history_that_was_trimmed(line: Line) -> None:
    """What is older than the history can't be proven; its entries and what they follow can."""
    backplane = line.backplane
    origin = await backplane.newest("a")
    ids = await line.notify(*"abcdef")
    await line.trim(3)
    for cursor in (origin, *ids[:2]):
        assert await backplane.after("a", cursor) == Unproven(Loss.TRIMMED, ids[-1])
    for missed, cursor in zip((3, 2, 1, 0), ids[2:], strict=True):
        assert len(await replay(backplane, cursor)) == missed


async def test_history_that_has_expired(line: Line) -> None:
    """The newest id outlives the history: who has it has missed nothing."""
    ids = await line.notify(*"abc")
    await line.trim(0)
    assert await line.backplane.newest("a") == ids[-1]
    assert await replay(line.backplane, ids[-1]) == []
    for cursor in ids[:-1]:
        assert await line.backplane.after("a", cursor) == Unproven(Loss.TRIMMED, ids[-1])


async def test_history_that_was_lost(line: Line) -> None:
    """Once Redis has lost its data no old id is known, also when its offset comes again."""
    backplane = line.backplane
    origin = await backplane.newest("a")
    ids = await line.notify(*"abc")
    await line.flush()
    for cursor in ids:
        assert await backplane.after("a", cursor) == Unproven(Loss.LOST, None)
    assert await backplane.newest("a") != origin
    (first, second) = await line.notify(*"de")
    assert first.startswith("1-")
    for cursor in ids:
        assert await backplane.after("a", cursor) == Unproven(Loss.LOST, second)
    assert isinstance(await backplane.after("a", origin), Unproven)
    assert len(await replay(backplane, first)) == 1


async def test_ids_belong_to_their_user(line: Line) -> None:
    """The id of another user's notification is unknown."""
    await line.notify(*"abc")
    (foreign, _) = await line.notify(*"ab", user_id="b")
    assert isinstance(await line.backplane.after("a", foreign), Unproven)
    assert isinstance(await line.backplane.after("nobody", foreign), Unproven)


async def test_redis_away() -> None:
    """A Redis that cannot be reached is reported as that, for subscriptions and for health."""
    async with RedisClient(
        client_id="test", redis_url="redis://127.0.0.1:1", timeout_s=0.05
    ) as client:
        backplane = RedisBackplane(client)
        assert not backplane.hears
        with pytest.raises(BackplaneUnavailableError):
            await backplane.ping()
        with pytest.raises(BackplaneUnavailableError):
            await backplane.newest("a")
        with pytest.raises(BackplaneUnavailableError):
            await backplane.after("a", NotificationId("1-1"))
        with pytest.raises(BackplaneUnavailableError):
            async with backplane.subscribe("ws:a"):
                pass
        assert client.subscription_statistics().subscriptions == 0


async def test_twin_can_be_away_too() -> None:
    """The twin fails as Redis does."""
    backplane = MemoryBackplane()
    backplane.available = False
    with pytest.raises(BackplaneUnavailableError):
        async with backplane.subscribe("ws:a"):
            pass
    assert backplane.subscriptions == 0
    backplane.readable = False
    with pytest.raises(BackplaneUnavailableError):
        await backplane.newest("a")
    with pytest.raises(BackplaneUnavailableError):
        await backplane.after("a", NotificationId("1-1"))


async def test_redis_is_heard() -> None:
    """While notifications would come, the service is ready for them."""
    async with (
        RedisServer() as server,
        RedisClient(client_id="test", redis_url=server.url) as client,
    ):
        backplane = RedisBackplane(client)
        await backplane.ping()
        assert not backplane.hears
        client.open_subscriptions()

        async def hears() -> bool:
            return backplane.hears

        await until(hears)
