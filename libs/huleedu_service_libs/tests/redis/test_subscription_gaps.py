"""Subscribers that want to know where payloads may be missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from huleedu_service_libs.payload import Gap
from huleedu_service_libs.testing.polling import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from redis.asyncio import Redis

    from huleedu_service_libs.redis_client import RedisClient
    from libs.huleedu_service_libs.tests.redis.conftest import Next


@pytest.fixture
def lose(client: RedisClient, admin: Redis) -> Callable[[], Awaitable[None]]:
    """Cut the subscription connection; returns when channel `a` is back on the next one."""

    async def lose_connection() -> None:
        opened = client.subscription_statistics().connections_opened
        await admin.client_kill_filter(_type="pubsub")

        async def is_back() -> bool:
            now = client.subscription_statistics().connections_opened
            return now > opened and await admin.pubsub_numsub("a") == [(b"a", 1)]

        await until(is_back)

    return lose_connection


async def test_gap_before_the_first_payload_after_a_loss(
    client: RedisClient, lose: Callable[[], Awaitable[None]], hear: Next
) -> None:
    """Between what came before a loss and what comes after it there is a mark."""
    async with client.subscribe("a", mark_gaps=True) as subscription:
        for number in range(3):
            await client.publish("a", b"%d" % number)
            assert await hear(subscription) == b"%d" % number
            await lose()
            assert isinstance(await hear(subscription), Gap)
        await client.publish("a", b"last")
        assert await hear(subscription) == b"last"


async def test_gaps_stand_in_order(
    client: RedisClient, lose: Callable[[], Awaitable[None]], hear: Next
) -> None:
    """Who takes payloads late finds each mark where it belongs."""
    async with client.subscribe("a", mark_gaps=True) as subscription:
        for text in (b"1", b"2", b"3"):
            assert await client.publish("a", text) == 1
            await lose()
        await client.publish("a", b"4")
        heard = [await hear(subscription) for _ in range(7)]
    assert [None if isinstance(p, Gap) else p for p in heard] == [
        b"1",
        None,
        b"2",
        None,
        b"3",
        None,
        b"4",
    ]


async def test_two_losses_leave_one_gap(
    client: RedisClient, lose: Callable[[], Awaitable[None]], hear: Next
) -> None:
    """Losses with no payload in between are marked once."""
    async with client.subscribe("a", mark_gaps=True) as subscription:
        await lose()
        await lose()
        await client.publish("a", b"after")
        assert isinstance(await hear(subscription), Gap)
        assert await hear(subscription) == b"after"


async def test_gaps_only_for_those_who_want_them(
    client: RedisClient, lose: Callable[[], Awaitable[None]], hear: Next
) -> None:
    """A subscriber that did not ask for marks sees payloads and nothing else."""
    async with (
        client.subscribe("a") as plain,
        client.subscribe("a", mark_gaps=True) as marked,
    ):
        await client.publish("a", b"before")
        await lose()
        await client.publish("a", b"after")
        assert [await hear(plain) for _ in range(2)] == [b"before", b"after"]
        assert [len(await hear(marked)) for _ in range(3)] == [6, 0, 5]


async def test_a_new_subscriber_has_missed_nothing(
    client: RedisClient, lose: Callable[[], Awaitable[None]], hear: Next
) -> None:
    """A subscription that begins after a loss begins without a mark."""
    async with client.subscribe("a"):
        await lose()
        async with client.subscribe("a", mark_gaps=True) as late:
            await client.publish("a", b"first")
            assert await hear(late) == b"first"
