"""Durable publishing: the chain of a user's notifications, batches, and what Redis is asked."""

import asyncio
import json
import re
import signal
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from redis import exceptions
from redis.asyncio import Redis

from huleedu_service_libs.error_handling import HuleEduError
from huleedu_service_libs.notification_settings import HistoryLimits
from huleedu_service_libs.notifications import Notification, NotificationReceipt
from huleedu_service_libs.redis_channels import UserKeys, user_channel
from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_scripts import MAX_JOINED_CALLS
from huleedu_service_libs.redis_server import RedisServer
from huleedu_service_libs.testing.tcp_proxy import TcpProxy
from libs.huleedu_service_libs.tests.redis.conftest import Until

KEYS = UserKeys.of(user_channel("t"))
EVERYTHING = 1_000_000


def notification(number: int = 0, user_id: str = "t", **options: Any) -> Notification:
    return Notification(user_id=user_id, event_type="e", data={"n": number}, **options)


def assert_one_chain(payloads: Sequence[bytes]) -> None:
    """Offsets from 1, each naming the one before it."""
    objects = [json.loads(payload) for payload in payloads]
    ids = [published["id"] for published in objects]
    assert len(set(ids)) == len(ids)
    assert [int(id_.partition("-")[0]) for id_ in ids] == list(range(1, len(ids) + 1))
    assert objects[0]["prev"] is None
    assert [published["prev"] for published in objects[1:]] == ids[:-1]


async def commands(admin: Redis) -> dict[str, int]:
    """How often each command was called from outside a script since `CONFIG RESETSTAT`."""
    stats = await admin.info("commandstats")
    return {
        name.removeprefix("cmdstat_"): stat["calls"]
        for name, stat in stats.items()
        if name in {"cmdstat_eval", "cmdstat_evalsha", "cmdstat_script|load", "cmdstat_script"}
    }


async def test_chain(client: RedisClient) -> None:
    """Each notification of a user names the one before it, and the history keeps what was sent."""
    async with client.subscribe("ws:t") as subscription:
        receipts = [await client.publish_notification(notification(n)) for n in range(5)]
        heard = [await anext(subscription) for _ in range(5)]
    assert_one_chain(heard)
    assert [json.loads(payload)["data"]["n"] for payload in heard] == list(range(5))
    kept = await client.history.kept("t", max_entries=EVERYTHING)
    assert [entry.payload for entry in kept] == heard
    assert [entry.id for entry in kept] == [receipt.id for receipt in receipts]
    assert [entry.id for entry in kept] == [json.loads(payload)["id"] for payload in heard]


async def test_nonces(client: RedisClient) -> None:
    """The second part of an id can't be guessed from others."""
    receipts = await client.publish_notifications([notification() for _ in range(100)])
    nonces = [int(re.fullmatch(r"\d+-(\d+)", receipt.id or "")[1]) for receipt in receipts]  # type: ignore[index]
    assert len(set(nonces)) == 100
    assert max(nonces) < 2**63
    # Of 100 random numbers some are in each quarter.
    assert {nonce >> 61 for nonce in nonces} == {0, 1, 2, 3}


async def test_many_publishers_of_one_user(server: RedisServer) -> None:
    """Many services publish to one user at once: one chain, heard in the order it is kept in."""
    publishers, publishes = 5, 60
    limits = HistoryLimits(size=1000)

    async def publish(number: int) -> None:
        async with RedisClient(
            client_id=f"service-{number}", redis_url=server.url, history_limits=limits
        ) as publisher:
            # One by one, several at once, and in batches: all ways that there are.
            for n in range(publishes // 3):
                await publisher.publish_notification(notification(n))
                await asyncio.gather(*(publisher.publish_notification(notification(n)),))
            await publisher.publish_notifications([notification(n) for n in range(publishes // 3)])

    async with RedisClient(client_id="reader", redis_url=server.url) as reader:
        async with reader.subscribe("ws:t") as subscription:
            await asyncio.gather(*(publish(number) for number in range(publishers)))
            heard = [await anext(subscription) for _ in range(publishers * publishes)]
        assert_one_chain(heard)
        kept = await reader.history.kept("t", max_entries=EVERYTHING)
        assert [entry.payload for entry in kept] == heard
        assert await reader.history.newest("t") == kept[-1].id


async def test_users_have_chains_of_their_own(client: RedisClient) -> None:
    """What one user is told has no place in another user's chain."""
    users = [f"teacher-{n}" for n in range(40)]
    batch = [notification(n, user) for n in range(5) for user in users]
    receipts = await client.publish_notifications(batch)
    for index, user in enumerate(users):
        kept = await client.history.kept(user, max_entries=EVERYTHING)
        assert_one_chain([entry.payload for entry in kept])
        assert [entry.id for entry in kept] == [r.id for r in receipts[index :: len(users)]]


async def test_batch_keeps_the_order(client: RedisClient) -> None:
    """A batch is published in its order, whatever kinds of notifications are mixed in it."""
    kinds: list[dict[str, Any]] = [
        {},
        {"durable": False},
        {},
        {},
        {"collapse_key": "progress"},
        {"idempotency_key": "job"},
        {"expires_in_s": 60},
        {},
        {"durable": False},
        {},
    ]
    batch = [notification(n, **kind) for n, kind in enumerate(kinds * 4)]
    async with client.subscribe("ws:t") as subscription:
        receipts = await client.publish_notifications(batch)
        sent = [n for n, receipt in enumerate(receipts) if not receipt.duplicate]
        heard = [json.loads(await anext(subscription)) for _ in sent]
    assert [published["data"]["n"] for published in heard] == sent
    assert [published.get("id") for published in heard] == [receipts[n].id for n in sent]
    assert [n for n in range(len(batch)) if n not in sent] == [15, 25, 35]
    assert {receipts[n].id for n in (15, 25, 35)} == {receipts[5].id}
    assert [receipt.receivers for receipt in receipts] == [
        0 if receipt.duplicate else 1 for receipt in receipts
    ]
    kept = await client.history.kept("t", max_entries=EVERYTHING)
    assert_one_chain([entry.payload for entry in kept])


async def test_empty_batch(client: RedisClient) -> None:
    """A batch of nothing is no error."""
    assert await client.publish_notifications([]) == []


@pytest.mark.parametrize(
    "wrong",
    [{"n": float("nan")}, {"n": object()}, {"n": "x" * 70_000}],
    ids=["NaN", "no JSON", "too long"],
)
async def test_batch_with_one_that_is_refused(
    client: RedisClient, admin: Redis, wrong: dict[str, Any]
) -> None:
    """If one of a batch can't be published nothing is, and the error names its place."""
    batch = [notification(n) for n in range(20)]
    batch[13] = Notification(user_id="t", event_type="e", data=wrong)
    batch[17] = Notification(user_id="", event_type="e", data={})
    async with client.subscribe("ws:t") as subscription:
        with pytest.raises(HuleEduError) as refused:
            await client.publish_notifications(batch)
        await client.publish("ws:t", b"nothing before this")
        assert await anext(subscription) == b"nothing before this"
    assert refused.value.error_detail.details["index"] == 13
    assert refused.value.error_detail.details["field"] == "data"
    assert await admin.keys() == []


async def test_each_has_an_outcome(client: RedisClient, admin: Redis) -> None:
    """What can't be published, and what Redis refuses, leaves the others of a batch alone."""
    await admin.rpush(UserKeys.of(user_channel("broken")).last, "no text")
    batch = [notification(n) for n in range(5)]
    batch[1] = Notification(user_id="t", event_type="e", data={"n": float("nan")})
    batch[2] = notification(2, "broken", collapse_key="k")
    batch[4] = Notification(user_id="", event_type="e", data={})
    async with client.subscribe("ws:t") as subscription:
        outcomes = await client.publish_each(batch)
        heard = [json.loads(await anext(subscription)) for _ in range(2)]
    assert [type(outcome) for outcome in outcomes] == [
        NotificationReceipt,
        HuleEduError,
        exceptions.ResponseError,
        NotificationReceipt,
        HuleEduError,
    ]
    ids = [outcome.id for outcome in outcomes if isinstance(outcome, NotificationReceipt)]
    assert [published["data"]["n"] for published in heard] == [0, 3]
    assert [published["id"] for published in heard] == ids
    fields = [
        outcome.error_detail.details["field"]
        for outcome in outcomes
        if isinstance(outcome, HuleEduError)
    ]
    assert fields == ["data", "user_id"]


async def test_each_of_none(client: RedisClient) -> None:
    """No notifications have no outcomes, and neither has a batch of refused ones to be sent."""
    assert await client.publish_each([]) == []
    [refused] = await client.publish_each([Notification(user_id="", event_type="e", data={})])
    assert isinstance(refused, HuleEduError)


async def test_each_while_redis_is_away(client: RedisClient, server: RedisServer) -> None:
    """Without Redis each says for itself that it failed, or that it could not be published."""
    await server.kill()
    batch = [notification(), Notification(user_id="t", event_type="", data={}), notification()]
    outcomes = await client.publish_each(batch)
    assert [type(outcome) for outcome in outcomes] == [
        exceptions.ConnectionError,
        HuleEduError,
        exceptions.ConnectionError,
    ]


async def test_each_again_with_a_key(client: RedisClient, server: RedisServer) -> None:
    """What has failed is repeated with its idempotency key, and is published once."""
    batch = [notification(n, idempotency_key=f"job-{n}") for n in range(3)]
    [first] = await client.publish_each(batch[:1])
    server.signal(signal.SIGSTOP)
    try:
        async with RedisClient(client_id="hasty", redis_url=server.url, timeout_s=0.2) as hasty:
            outcomes = await hasty.publish_each(batch)
    finally:
        server.signal(signal.SIGCONT)
    assert {type(outcome) for outcome in outcomes} == {exceptions.TimeoutError}
    again = await client.publish_each(batch)
    receipts = [outcome for outcome in again if isinstance(outcome, NotificationReceipt)]
    assert isinstance(first, NotificationReceipt)
    assert receipts[0] == NotificationReceipt(first.id, 0, duplicate=True)
    kept = await client.history.kept("t", max_entries=EVERYTHING)
    assert [entry.id for entry in kept] == [receipt.id for receipt in receipts]
    assert_one_chain([entry.payload for entry in kept])


async def test_one_round_trip(server: RedisServer, admin: Redis, until: Until) -> None:
    """One publish, and a batch of 1,000, are with Redis before it has answered anything."""
    limits = HistoryLimits(size=2000)
    async with (
        TcpProxy(server.port) as proxy,
        RedisClient(client_id="test", redis_url=proxy.url, history_limits=limits) as client,
    ):
        await client.publish_notification(notification())
        await client.publish_notifications([notification()])

        async def kept(size: int) -> bool:
            return bool(await admin.xlen(KEYS.history) == size)

        proxy.hold(to_server=False)
        single = asyncio.create_task(client.publish_notification(notification()))
        await until(lambda: kept(3))
        proxy.flow()
        await single

        proxy.hold(to_server=False)
        batch = asyncio.create_task(
            client.publish_notifications([notification(n) for n in range(1000)])
        )
        await until(lambda: kept(1003))
        assert not batch.done()
        proxy.flow()
        assert len(await batch) == 1000


async def test_commands(client: RedisClient, admin: Redis) -> None:
    """A durable publish is one EVALSHA; in a batch several share one."""
    await client.publish_notification(notification())
    await client.publish_notification(notification())
    await admin.config_resetstat()
    await client.publish_notification(notification())
    assert await commands(admin) == {"evalsha": 1}
    await admin.config_resetstat()
    await client.publish_notifications([notification(n, f"u{n % 7}") for n in range(1000)])
    called = await commands(admin)
    # The expiries of seven users are due, and the last of the others stands alone.
    assert sum(called.values()) == 1 + (1000 - 7) // MAX_JOINED_CALLS + 1
    assert called["eval"] == 3


async def test_script_flush(client: RedisClient, admin: Redis) -> None:
    """When Redis has forgotten the scripts, everything is still published, and once."""
    for _ in range(3):
        await client.publish_notification(notification())
        await client.publish_notifications([notification() for _ in range(40)])
        await admin.script_flush()
    await client.publish_notifications([notification() for _ in range(40)])
    kept = await client.history.kept("t", max_entries=EVERYTHING)
    assert_one_chain([entry.payload for entry in kept])
    assert len(kept) == 3 * 41 + 40


@pytest.mark.parametrize("first", ["one", "batch"])
async def test_restart(client: RedisClient, server: RedisServer, first: str) -> None:
    """After a restart of Redis the first publish works like any other, and happens once."""
    await client.publish_notification(notification())
    await client.publish_notifications([notification() for _ in range(40)])
    await server.kill()
    await server.launch()
    if first == "one":
        await client.publish_notification(notification())
    else:
        await client.publish_notifications([notification() for _ in range(40)])
    await client.publish_notifications([notification() for _ in range(40)])
    kept = await client.history.kept("t", max_entries=EVERYTHING)
    assert_one_chain([entry.payload for entry in kept])
    assert len(kept) == (41 if first == "one" else 80)


async def test_full_redis(client: RedisClient, admin: Redis) -> None:
    """A Redis that is out of memory refuses, publishes nothing, and loses nothing."""
    await client.publish_notification(notification(1))
    async with client.subscribe("ws:t") as subscription:
        await admin.config_set("maxmemory", 1)
        for options in ({}, {"collapse_key": "k"}):
            with pytest.raises(exceptions.ResponseError, match="maxmemory"):
                await client.publish_notification(notification(2, **options))
        with pytest.raises(exceptions.ResponseError, match="maxmemory"):
            await client.publish_notifications([notification(n) for n in range(40)])
        await admin.config_set("maxmemory", 0)
        await client.publish_notification(notification(3))
        assert json.loads(await anext(subscription))["data"] == {"n": 3}
    kept = await client.history.kept("t", max_entries=EVERYTHING)
    assert_one_chain([entry.payload for entry in kept])
    assert [json.loads(entry.payload)["data"]["n"] for entry in kept] == [1, 3]


async def test_error_within_a_batch(client: RedisClient, admin: Redis) -> None:
    """What Redis refuses in the middle of a batch is raised; the rest is published."""
    await admin.rpush(UserKeys.of(user_channel("broken")).last, "no text")
    batch = [notification(n) for n in range(3)]
    batch.insert(1, notification(user_id="broken", collapse_key="k"))
    with pytest.raises(exceptions.ResponseError, match="WRONGTYPE"):
        await client.publish_notifications(batch)
    kept = await client.history.kept("t", max_entries=EVERYTHING)
    assert [json.loads(entry.payload)["data"]["n"] for entry in kept] == [0, 1, 2]


async def test_order_of_ids_is_the_order_of_publication(client: RedisClient) -> None:
    """Beyond nine, and beyond any number of digits, a later notification has the greater offset."""
    receipts = await client.publish_notifications([notification() for _ in range(1005)])
    offsets = [int((receipt.id or "").partition("-")[0]) for receipt in receipts]
    assert all(after == before + 1 for before, after in pairwise(offsets))


async def test_huge_offset(client: RedisClient, admin: Redis) -> None:
    """Offsets stay exact beyond what any user will ever get."""
    await admin.set(KEYS.last, "99999999998-7")
    receipts = [await client.publish_notification(notification()) for _ in range(2)]
    kept = await client.history.kept("t", max_entries=EVERYTHING)
    assert [entry.id for entry in kept] == [receipt.id for receipt in receipts]
    assert [json.loads(entry.payload)["prev"] for entry in kept] == ["99999999998-7", kept[0].id]
    assert kept[1].id.startswith("100000000000-")
