"""Subscribers that come and go at the worst moments."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
from redis import Redis

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis as AsyncRedis

    from huleedu_service_libs.redis_client import RedisClient
    from huleedu_service_libs.redis_server import RedisServer
    from libs.huleedu_service_libs.tests.redis.conftest import Channels, HearAgain, Next, Until


async def nothing_left(client: RedisClient, channels: Channels) -> bool:
    """No subscriber in the process, no channel in Redis."""
    statistics = client.subscription_statistics()
    return (statistics.channels, statistics.subscriptions) == (
        0,
        0,
    ) and await channels() == []


async def test_two_first_subscribers_at_once(client: RedisClient, admin: AsyncRedis) -> None:
    """Subscribers that want a new channel at the same time both hear from it."""
    for i in range(30):
        channel = f"new:{i}"
        ready = asyncio.Barrier(4)

        async def hear_one(channel: str = channel, ready: asyncio.Barrier = ready) -> bytes:
            async with client.subscribe(channel) as subscription:
                await ready.wait()
                return await anext(subscription)

        async with asyncio.TaskGroup() as tasks:
            hearing = [tasks.create_task(hear_one()) for _ in range(3)]
            await ready.wait()
            assert await admin.pubsub_numsub(channel) == [(channel.encode(), 1)]
            await client.publish(channel, b"hello")
        assert [task.result() for task in hearing] == [b"hello"] * 3


async def test_coming_back_while_the_unsubscribe_is_in_flight(
    client: RedisClient, channels: Channels, until: Until
) -> None:
    """A subscriber that arrives just as the last one left hears everything from then on."""
    for i in range(100):
        async with client.subscribe("door"):
            pass
        # Nothing has been awaited since: the UNSUBSCRIBE is not even written.
        async with client.subscribe("door") as subscription:
            assert await client.publish("door", b"%d" % i) == 1
            assert await anext(subscription) == b"%d" % i
    await until(lambda: nothing_left(client, channels))


async def test_no_leftovers_of_the_one_who_left(
    server: RedisServer, client: RedisClient, hear: Next
) -> None:
    """Who comes just after the last one left hears nothing that was published for that one."""
    # A blocking client, so that the event loop turns exactly where this test says.
    async with AsyncExitStack() as stack:
        other = stack.enter_context(Redis.from_url(server.url, protocol=2))
        async with client.subscribe("door"):
            other.publish("door", b"old")
        entering = asyncio.create_task(stack.enter_async_context(client.subscribe("door")))
        # In this turn the UNSUBSCRIBE is written, then the new subscriber comes, and last the
        # hub will read `old`.
        await asyncio.sleep(0)
        while other.pubsub_numsub("door") != [(b"door", 0)]:
            pass
        assert other.publish("door", b"in between") == 0
        subscription = await entering
        other.publish("door", b"new")
        assert await hear(subscription) == b"new"


async def enter_and_wait(client: RedisClient, channel: str) -> None:
    async with client.subscribe(channel) as subscription:
        await anext(subscription)


async def test_cancelled_before_the_acknowledgement(
    server: RedisServer, client: RedisClient, channels: Channels, until: Until, hear: Next
) -> None:
    """Subscribers that give up early leave nothing behind and disturb nobody's acknowledgement."""
    async with client.subscribe("open"):
        pass  # from here on there is a connection
    server.signal(signal.SIGSTOP)
    async with AsyncExitStack() as stack:
        waiting = [asyncio.create_task(enter_and_wait(client, f"c:{i}")) for i in range(10)]
        await asyncio.sleep(0)  # each has asked for its channel
        for task in waiting[::2]:
            task.cancel()
        await asyncio.wait(waiting[::2])
        # Every other channel is wanted again, now behind the UNSUBSCRIBE of its first attempt.
        again = [client.subscribe(f"c:{i}") for i in range(0, 10, 2)]
        entering = [asyncio.create_task(stack.enter_async_context(s)) for s in again]
        await asyncio.sleep(0)
        assert client.subscription_statistics().channels == 10
        server.signal(signal.SIGCONT)
        for i, subscription in enumerate(await asyncio.gather(*entering)):
            assert await client.publish(f"c:{2 * i}", b"%d" % i) == 1
            assert await hear(subscription) == b"%d" % i
        for task in waiting[1::2]:
            task.cancel()
        await asyncio.wait(waiting)
    await until(lambda: nothing_left(client, channels))


class Churn:
    """Subscribers of a few channels that come, listen for a while and go, until told to end."""

    def __init__(self, client: RedisClient, seed: int) -> None:
        self.client = client
        self.random = random.Random(seed)
        self.channels = ["churn:a", "churn:b", "churn:c"]
        self.started: Counter[str] = Counter()
        self.published: Counter[str] = Counter()
        self.memberships = 0
        self.cancelled = 0
        self.ended = False

    async def publish(self, channel: str) -> None:
        """Numbers without a gap, one at a time, so that a listener can tell what it missed."""
        while not self.ended:
            number = self.started[channel]
            self.started[channel] += 1
            await self.client.publish(channel, b"%d" % number)
            self.published[channel] += 1

    async def listen(self, channel: str, payloads: int) -> None:
        async with self.client.subscribe(channel) as subscription:
            expected_by_now = self.started[channel]
            first = int(await anext(subscription))
            # An earlier one may have been on its way; the next one to start may not be missed.
            assert first <= expected_by_now
            for number in range(first + 1, first + payloads):
                assert int(await anext(subscription)) == number
        self.memberships += 1

    async def come_and_go(self, rounds: int) -> None:
        for _ in range(rounds):
            channel = self.random.choice(self.channels)
            task = asyncio.create_task(self.listen(channel, self.random.randrange(1, 5)))
            if self.random.random() < 0.4:
                for _ in range(self.random.randrange(6)):
                    await asyncio.sleep(0)
                task.cancel()
            try:
                await task
            except asyncio.CancelledError:
                self.cancelled += 1

    async def run(self, *, workers: int, rounds: int) -> None:
        async with asyncio.TaskGroup() as publishers:
            for channel in self.channels:
                publishers.create_task(self.publish(channel))
            try:
                async with asyncio.TaskGroup() as listeners:
                    for _ in range(workers):
                        listeners.create_task(self.come_and_go(rounds))
            finally:
                self.ended = True


@pytest.mark.parametrize("seed", range(5))
async def test_churn(client: RedisClient, channels: Channels, until: Until, seed: int) -> None:
    """However subscribers come, go and give up, none misses what is published while it is there."""
    churn = Churn(client, seed)
    await churn.run(workers=12, rounds=25)
    assert churn.memberships > 100
    assert churn.cancelled > 20
    await until(lambda: nothing_left(client, channels))
    assert client.subscription_statistics().connections_opened == 1


class Patient(Churn):
    """Loses its connection now and then, so that a gap is no failure, but silence would be."""

    async def listen(self, channel: str, payloads: int) -> None:
        async with self.client.subscribe(channel) as subscription:
            numbers = [int(await anext(subscription)) for _ in range(payloads)]
        assert numbers == sorted(set(numbers))
        self.memberships += 1


@pytest.mark.parametrize("seed", range(3))
async def test_churn_over_lost_connections(
    client: RedisClient, admin: AsyncRedis, channels: Channels, until: Until, seed: int
) -> None:
    """Subscribers that come and go while the connection is lost again and again all hear on."""
    churn = Patient(client, seed)

    async def killed() -> bool:
        return churn.ended or await admin.client_kill_filter(_type="pubsub") > 0

    async def cut() -> None:
        for _ in range(5):
            await until(killed)
            messages = client.subscription_statistics().messages

            async def heard_more(messages: int = messages) -> bool:
                await admin.ping()
                return churn.ended or client.subscription_statistics().messages > messages

            await until(heard_more)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(cut())
        await churn.run(workers=12, rounds=15)
    assert churn.memberships > 50
    assert client.subscription_statistics().connections_opened > 1
    await until(lambda: nothing_left(client, channels))


async def test_many_channels_come_back_in_batches(
    client: RedisClient, admin: AsyncRedis, channels: Channels, until: Until, hear: Next
) -> None:
    """After a lost connection every one of 1,200 channels is heard again."""
    names = [f"batch:{i}" for i in range(1200)]
    async with AsyncExitStack() as stack:
        subscriptions: dict[str, AsyncIterator[bytes]] = {}

        async def enter(name: str) -> None:
            subscriptions[name] = await stack.enter_async_context(client.subscribe(name))

        await asyncio.gather(*map(enter, names))
        await admin.client_kill_filter(_type="pubsub")

        async def all_back() -> bool:
            return len(await channels()) == len(names)

        async def all_gone() -> bool:
            return not await channels()

        await until(all_back)
        for name in names[:: len(names) // 50]:
            await client.publish(name, name)
            assert await hear(subscriptions[name]) == name.encode()
    await until(all_gone)


async def test_subscribing_while_the_connection_is_lost(
    client: RedisClient, admin: AsyncRedis, hear_again: HearAgain
) -> None:
    """A subscriber that arrives between two connections is served by the next one."""
    async with client.subscribe("old") as old:
        await admin.client_kill_filter(_type="pubsub")
        async with client.subscribe("new") as new:
            assert await hear_again(client, "new", new) == b"again"
            assert await hear_again(client, "old", old) == b"again"
