"""What subscribers of one process hear through the connection that they share."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from huleedu_service_libs.payload import Payload
from huleedu_service_libs.redis_address import RedisAddress
from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_subscription_connection import BUFFER_BYTES
from huleedu_service_libs.redis_subscriptions import SubscriptionHub
from huleedu_service_libs.subscription import PAYLOAD_OVERHEAD_BYTES, SubscriptionOverflowError

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from huleedu_service_libs.redis_server import RedisServer
    from libs.huleedu_service_libs.tests.redis.conftest import Channels, Until


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(payloads=st.lists(st.binary(max_size=200), max_size=20))
async def test_bytes_and_order(client: RedisClient, payloads: list[bytes]) -> None:
    """Whatever bytes are published arrive unchanged and in the order of publication."""
    async with client.subscribe("raw") as subscription:
        for payload in payloads:
            await client.publish("raw", payload)
        assert [await anext(subscription) for _ in payloads] == payloads


async def test_large_payload(client: RedisClient) -> None:
    """A payload of a megabyte arrives whole."""
    payload = bytes(range(256)) * 4096
    async with client.subscribe("raw") as subscription:
        await client.publish("raw", payload)
        assert await anext(subscription) == payload


async def test_text_is_utf8(client: RedisClient) -> None:
    """Text is published as UTF-8."""
    async with client.subscribe("raw") as subscription:
        await client.publish("raw", "Räksmörgås 🦐")
        assert await anext(subscription) == "Räksmörgås 🦐".encode()


async def test_each_subscriber_hears_each_payload_once(client: RedisClient) -> None:
    """All subscribers of a channel get each payload exactly once, as one shared object."""
    async with AsyncExitStack() as stack:
        subscriptions = [
            await stack.enter_async_context(client.subscribe("shared")) for _ in range(10)
        ]
        # Redis counts one subscriber, whatever the process does with it.
        assert [await client.publish("shared", b"%d" % i) for i in range(20)] == [1] * 20
        heard = [[await anext(s) for _ in range(20)] for s in subscriptions]
    assert heard[0] == [b"%d" % i for i in range(20)]
    for others in heard[1:]:
        assert all(a is b for a, b in zip(heard[0], others, strict=True))


async def test_channels_do_not_mix(client: RedisClient) -> None:
    """A subscriber hears its own channel and no other."""
    async with client.subscribe("a") as a, client.subscribe("b") as b:
        await client.publish("b", b"for b")
        await client.publish("a", b"for a")
        assert await anext(a) == b"for a"
        assert await anext(b) == b"for b"


async def test_entered_means_heard(client: RedisClient) -> None:
    """What is published right after a subscription was entered arrives, a hundred times of 100."""
    await client.ping()  # so that even the first publish has a connection and is quick
    for i in range(100):
        async with client.subscribe(f"entered:{i % 7}") as subscription:
            assert await client.publish(f"entered:{i % 7}", b"%d" % i) == 1
            assert await anext(subscription) == b"%d" % i


async def test_time_of_arrival(client: RedisClient) -> None:
    """A payload knows when the process had it."""
    loop = asyncio.get_running_loop()
    async with client.subscribe("timed") as subscription:
        before = loop.time()
        await client.publish("timed", b"now")
        payload = await anext(subscription)
    assert isinstance(payload, Payload)
    assert before <= payload.received_at <= loop.time()


async def test_one_connection(client: RedisClient, admin: Redis) -> None:
    """Sixty subscribers of twenty channels cost Redis one connection."""
    async with AsyncExitStack() as stack:
        for i in range(60):
            await stack.enter_async_context(client.subscribe(f"many:{i % 20}"))
        connections = await admin.client_list(_type="pubsub")
        assert [c["name"] for c in connections] == ["test:subscriptions"]
        assert connections[0]["sub"] == "21"  # with the canary's
        statistics = client.subscription_statistics()
    assert (statistics.channels, statistics.subscriptions) == (20, 60)
    assert statistics.connections_opened == 1


async def test_no_subscriber_no_connection(client: RedisClient, admin: Redis) -> None:
    """A process that never subscribes opens no subscription connection."""
    await client.ping()
    assert await admin.client_list(_type="pubsub") == []
    assert client.subscription_statistics().silent_for_s is None


async def test_opened_in_advance(client: RedisClient, admin: Redis, until: Until) -> None:
    """A process can have its subscription connection before anybody subscribes."""
    client.open_subscriptions()

    async def connected() -> bool:
        return "test:subscriptions" in {c["name"] for c in await admin.client_list()}

    await until(connected)
    async with client.subscribe("a"):
        assert client.subscription_statistics().connections_opened == 1


class Upper(Payload):
    @property
    def upper_case(self) -> bytes:
        return self.upper()


async def test_payloads_of_ones_own_type(server: RedisServer) -> None:
    """A service can have payloads of its own type, shared by all subscribers like any other."""
    async with (
        RedisClient(client_id="test", redis_url=server.url, payload_type=Upper) as client,
        client.subscribe("a") as first,
        client.subscribe("a") as second,
    ):
        await client.publish("a", "loud")
        payload = await anext(first)
        assert isinstance(payload, Upper)
        assert payload.upper_case == b"LOUD"
        assert await anext(second) is payload


async def test_last_one_out_unsubscribes(client: RedisClient, channels: Channels) -> None:
    """The channel is given up when its last subscriber leaves, and not before."""
    async with AsyncExitStack() as first, AsyncExitStack() as second:
        await first.enter_async_context(client.subscribe("room"))
        staying = await second.enter_async_context(client.subscribe("room"))
        await first.aclose()
        assert await client.publish("room", b"still here") == 1
        assert await anext(staying) == b"still here"
    # The UNSUBSCRIBE left in order, so a subscription that was acknowledged after it proves it.
    async with client.subscribe("another"):
        assert await channels() == [b"another"]
        assert await client.publish("room", b"anybody?") == 0


async def test_what_was_queued_belongs_to_its_subscriber(client: RedisClient) -> None:
    """A subscriber that comes later does not hear what waits for another."""
    async with client.subscribe("room") as early, client.subscribe("room") as witness:
        await client.publish("room", b"before")
        assert await anext(witness) == b"before"
        async with client.subscribe("room") as late:
            await client.publish("room", b"after")
            assert await anext(late) == b"after"
        assert [await anext(early), await anext(early)] == [b"before", b"after"]


@pytest.mark.parametrize("size", [0, 100])
async def test_overflow_ends_only_its_own_subscription(
    server: RedisServer, client: RedisClient, size: int
) -> None:
    """A subscriber that does not keep up loses its subscription; its neighbour loses nothing."""
    limit = 10 * (size + PAYLOAD_OVERHEAD_BYTES)
    async with (
        SubscriptionHub(
            RedisAddress.parse(server.url),
            client_name="hub",
            publish=client.publish,
            spublish=client.publish,
            max_pending_bytes=limit,
        ) as hub,
        hub.subscribe("busy") as slow,
        hub.subscribe("busy") as quick,
    ):
        for _ in range(10):
            await client.publish("busy", bytes(size))
            assert await anext(quick) == bytes(size)
        assert hub.statistics().overflows == 0
        for _ in range(3):
            await client.publish("busy", bytes(size))
            assert await anext(quick) == bytes(size)
        with pytest.raises(SubscriptionOverflowError, match=str(limit)):
            await anext(slow)
        assert hub.statistics().overflows == 1
        # Taking the place of the one that failed starts afresh.
        async with hub.subscribe("busy") as again:
            await client.publish("busy", b"fresh")
            assert await anext(again) == b"fresh"


async def test_taking_payloads_makes_room(server: RedisServer, client: RedisClient) -> None:
    """A subscriber that keeps up never overflows, however much it hears."""
    limit = 2 * (100 + PAYLOAD_OVERHEAD_BYTES)
    async with (
        SubscriptionHub(
            RedisAddress.parse(server.url),
            client_name="hub",
            publish=client.publish,
            spublish=client.publish,
            max_pending_bytes=limit,
        ) as hub,
        hub.subscribe("busy") as subscription,
    ):
        for _ in range(50):
            await client.publish("busy", bytes(100))
            assert len(await anext(subscription)) == 100


async def test_all_that_waits_at_once(client: RedisClient, admin: Redis) -> None:
    """A subscriber can take all that waits, in order, and go on one by one as it likes."""
    sent = [b"%d" % n for n in range(60)]
    async with client.subscribe("room") as subscription, client.subscribe("room") as witness:
        heard: list[bytes] = []
        for start in range(0, len(sent), 20):
            for payload in sent[start : start + 20]:
                await admin.publish("room", payload)
                assert await anext(witness) == payload
            heard += [await anext(subscription) for _ in range(5)]
            batch = await subscription.next_batch()
            assert batch == sent[start + 5 : start + 20]
            heard += batch
        assert heard == sent


async def test_waiting_for_a_batch(client: RedisClient) -> None:
    """Who finds nothing waits, is woken by the first payload, and gives up without a loss."""
    async with client.subscribe("room") as subscription:
        for n in range(20):
            task = asyncio.create_task(subscription.next_batch())
            await asyncio.sleep(0)  # it waits from here on
            if n % 2:
                task.cancel()
                await asyncio.wait([task])
            await client.publish("room", b"%d" % n)
            assert await (subscription.next_batch() if n % 2 else task) == [b"%d" % n]


async def test_batches_make_room(server: RedisServer, client: RedisClient) -> None:
    """A subscriber that takes all that waits has its whole queue again, and may fail as any."""
    limit = 3 * (100 + PAYLOAD_OVERHEAD_BYTES)
    async with (
        SubscriptionHub(
            RedisAddress.parse(server.url),
            client_name="hub",
            publish=client.publish,
            spublish=client.publish,
            max_pending_bytes=limit,
        ) as hub,
        hub.subscribe("busy") as subscription,
        hub.subscribe("busy") as witness,
    ):
        for _ in range(20):
            for _ in range(3):
                await client.publish("busy", bytes(100))
                await anext(witness)
            assert await anext(subscription) == bytes(100)
            assert await subscription.next_batch() == [bytes(100)] * 2
        for _ in range(4):
            await client.publish("busy", bytes(100))
            await anext(witness)
        with pytest.raises(SubscriptionOverflowError):
            await subscription.next_batch()


async def test_backlog_larger_than_the_buffer(client: RedisClient, admin: Redis) -> None:
    """What has piled up in megabytes while the process was busy arrives whole and in order."""
    sizes = [(number * 7919) % 3000 for number in range(3000)]
    sent = [b"%d:" % number + bytes(size) for number, size in enumerate(sizes)]
    assert sum(map(len, sent)) > 2 * BUFFER_BYTES
    async with client.subscribe("a") as first, client.subscribe("b") as second:
        pipeline = admin.pipeline(transaction=False)
        for number, payload in enumerate(sent):
            pipeline.publish("ab"[number % 2], payload)
        await pipeline.execute()
        for start, subscription in enumerate((first, second)):
            heard: list[bytes] = []
            while len(heard) < len(sent) / 2:
                heard += await subscription.next_batch()
            assert heard == sent[start::2]


async def test_one_consumer(client: RedisClient) -> None:
    """Two tasks that read one subscription are told, rather than one of them never woken."""
    async with client.subscribe("room") as subscription, asyncio.TaskGroup() as tasks:

        async def read() -> bytes:
            return await anext(subscription)

        first = tasks.create_task(read())
        await asyncio.sleep(0)  # the first one waits from here on
        with pytest.raises(RuntimeError, match="one consumer"):
            await read()
        await client.publish("room", b"hello")
        assert await first == b"hello"


async def test_a_cancelled_read_loses_nothing(client: RedisClient) -> None:
    """A subscriber that stops waiting and comes back gets the payload that came meanwhile."""
    async with client.subscribe("room") as subscription:

        async def read() -> bytes:
            return await anext(subscription)

        for i in range(20):
            task = asyncio.create_task(read())
            await asyncio.sleep(0)  # it waits from here on
            task.cancel()
            await asyncio.wait([task])
            await client.publish("room", b"%d" % i)
            assert await anext(subscription) == b"%d" % i


async def test_statistics_count(client: RedisClient) -> None:
    """The statistics tell how much was heard, each message once."""
    async with client.subscribe("a") as first, client.subscribe("a") as second:
        await client.publish("a", b"12345")
        await anext(first)
        await anext(second)
        statistics = client.subscription_statistics()
    assert (statistics.messages, statistics.bytes, statistics.overflows) == (1, 5, 0)
    assert statistics.connected
    assert statistics.silent_for_s is not None
