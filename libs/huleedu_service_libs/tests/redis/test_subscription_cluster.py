"""Subscribers of a Redis Cluster, whatever becomes of its nodes."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING

import pytest
from redis import Redis, exceptions

from huleedu_service_libs.payload import Gap
from huleedu_service_libs.redis_address import RedisAddress
from huleedu_service_libs.redis_channels import hash_slot
from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_server import embedded_redis_server, installed_redis_server
from huleedu_service_libs.redis_subscription_canary import CANARY_PREFIX
from huleedu_service_libs.redis_subscriptions import SubscriptionHub
from huleedu_service_libs.testing.polling import until
from huleedu_service_libs.testing.redis_binaries import packaged_valkey_server
from huleedu_service_libs.testing.redis_cluster import RedisCluster

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from huleedu_service_libs.redis_server import RedisServer
    from huleedu_service_libs.redis_subscription_canary import Publish
    from libs.huleedu_service_libs.tests.redis.conftest import Next

TIMEOUT_S = 0.5
CHANNELS = [f"room:{number}" for number in range(30)]


def attentive(cluster: RedisCluster, timeout_s: float = TIMEOUT_S) -> RedisClient:
    return RedisClient(client_id="attentive", redis_url=cluster.url, timeout_s=timeout_s)


@pytest.fixture
async def cluster(redis_binary: Path) -> AsyncIterator[RedisCluster]:
    async with RedisCluster(redis_binary) as running:
        yield running


@pytest.fixture(
    params=[*filter(None, [installed_redis_server(), packaged_valkey_server()])],
    ids=lambda binary: binary.name,
)
async def sharded_cluster(request: pytest.FixtureRequest) -> AsyncIterator[RedisCluster]:
    """Redis has shard channels from version 7 on."""
    async with RedisCluster(request.param) as running:
        yield running


@pytest.fixture
async def replicated_cluster(redis_binary: Path) -> AsyncIterator[RedisCluster]:
    async with RedisCluster(redis_binary, replicas_per_master=1) as running:
        yield running


async def heard(client: RedisClient) -> None:
    async def hears() -> bool:
        return client.hears

    await until(hears)


async def subscribe_all(
    client: RedisClient, stack: AsyncExitStack
) -> dict[str, AsyncIterator[bytes]]:
    entering = [stack.enter_async_context(client.subscribe(c, mark_gaps=True)) for c in CHANNELS]
    return dict(zip(CHANNELS, await asyncio.gather(*entering), strict=True))


async def shard_subscribers(cluster: RedisCluster, node: RedisServer, channel: str) -> int:
    """How many there are on the node."""
    _, subscribers = await cluster.admin(node).ask("PUBSUB", "SHARDNUMSUB", channel)
    return int(subscribers)


async def channels_left(cluster: RedisCluster) -> list[str]:
    names: list[str] = []
    for node in cluster.running_nodes:
        admin = cluster.admin(node)
        names += map(str, await admin.pubsub_channels())
        try:
            names += await admin.ask("PUBSUB", "SHARDCHANNELS")
        except exceptions.ResponseError:
            continue
    return [name for name in names if not name.startswith(CANARY_PREFIX)]


async def other_master(cluster: RedisCluster, node: RedisServer) -> RedisServer:
    masters = [await cluster.node_of(slot) for slot in (0, 8191, 16383)]
    return next(master for master in masters if master is not node)


async def test_heard_from_everywhere(cluster: RedisCluster, hear: Next) -> None:
    """Whichever node it is published on, and in whichever way, it is heard once."""
    async with attentive(cluster) as client, AsyncExitStack() as stack:
        subscriptions = await subscribe_all(client, stack)
        for channel, subscription in subscriptions.items():
            for number, node in enumerate(cluster.nodes):
                await cluster.admin(node).publish(channel, str(number))
                assert await hear(subscription) == b"%d" % number
            await client.publish(channel, b"durable")
            assert await hear(subscription) == b"durable"
        statistics = client.subscription_statistics()
        assert statistics.messages == len(CHANNELS) * 4
        assert (statistics.channels, statistics.subscriptions) == (len(CHANNELS), len(CHANNELS))
        # One to any node, one to each master.
        assert statistics.connections_opened == 1 + len(cluster.nodes)
        await stack.aclose()

        async def left() -> bool:
            return not await channels_left(cluster)

        await until(left)
        assert client.subscription_statistics().channels == 0


async def test_entered_means_heard(cluster: RedisCluster, hear: Next) -> None:
    """What is published durably right after a subscription was entered arrives every time."""
    async with attentive(cluster, 10) as client:
        for number in range(100):
            channel = CHANNELS[number % 7]
            async with client.subscribe(channel) as subscription:
                await client.publish(channel, b"%d" % number)
                assert await hear(subscription) == b"%d" % number


async def test_hears_on_every_link(cluster: RedisCluster) -> None:
    """A process says that it hears only once it hears every node, and without any subscriber."""
    async with attentive(cluster) as client:
        assert not client.hears
        client.open_subscriptions()
        await heard(client)
        assert client.subscription_statistics().connections_opened == 4
        cluster.nodes[1].signal(signal.SIGSTOP)

        async def unheard() -> bool:
            return not client.hears

        await until(unheard)
        cluster.nodes[1].signal(signal.SIGCONT)
        await heard(client)


async def test_slot_that_moves(sharded_cluster: RedisCluster, hear: Next) -> None:
    """When a slot moves to another node its subscribers go along, and nothing is reconnected."""
    cluster = sharded_cluster
    async with attentive(cluster) as client, AsyncExitStack() as stack:
        subscriptions = await subscribe_all(client, stack)
        await heard(client)
        opened = client.subscription_statistics().connections_opened
        for channel in CHANNELS[:6]:
            slot = hash_slot(channel)
            target = await other_master(cluster, await cluster.node_of(slot))
            await cluster.migrate(slot, target)

            async def arrived(channel: str = channel, target: RedisServer = target) -> bool:
                return await shard_subscribers(cluster, target, channel) == 1

            await until(arrived)
            await client.publish(channel, b"after")
            assert isinstance(await hear(subscriptions[channel]), Gap)
            assert await hear(subscriptions[channel]) == b"after"
        for channel in CHANNELS[6:]:
            await client.publish(channel, b"undisturbed")
            assert await hear(subscriptions[channel]) == b"undisturbed"
        await heard(client)
        statistics = client.subscription_statistics()
        assert (statistics.connections_opened, statistics.times_deaf) == (opened, 0)


async def test_slot_that_nobody_serves_for_a_while(sharded_cluster: RedisCluster) -> None:
    """Subscribers of a slot that has no node wait for one, and those of others go on."""
    cluster = sharded_cluster
    slot = hash_slot("a")
    target = await other_master(cluster, await cluster.node_of(slot))
    async with (
        attentive(cluster) as client,
        client.subscribe("a", mark_gaps=True) as old,
        client.subscribe("b") as other,
    ):
        await heard(client)
        for node in cluster.nodes:
            await cluster.admin(node).ask("CLUSTER", "DELSLOTS", slot)

        async def unserved() -> bool:
            try:
                async with client.subscribe("{a}2"):
                    return False
            except exceptions.TimeoutError:
                return True

        await until(unserved)
        await cluster.admin(cluster.nodes[0]).publish("b", "again")
        assert await until_again(other) == [b"again"]

        async def served() -> bool:
            # Gossip from before may have told it that the slot is somebody's.
            with suppress(exceptions.ResponseError):
                await cluster.admin(target).ask("CLUSTER", "DELSLOTS", slot)
            try:
                await cluster.admin(target).ask("CLUSTER", "ADDSLOTS", slot)
            except exceptions.ResponseError:
                return False
            return True

        await until(served)
        payloads = await heard_again(client, "a", old)
        assert isinstance(payloads[0], Gap)
        async with client.subscribe("{a}2") as new:
            await heard_again(client, "{a}2", new)


async def test_leaving_just_when_the_slot_moves(sharded_cluster: RedisCluster, hear: Next) -> None:
    """A subscriber that leaves while Redis takes the channel away confuses nobody's answers."""
    cluster = sharded_cluster
    source = await cluster.node_of(hash_slot("a"))
    target = await other_master(cluster, source)
    (neighbour, *_) = [c for c in CHANNELS if await cluster.node_of(hash_slot(c)) is source]
    # Blocking clients, so that the event loop turns exactly where this test says.
    with Redis(port=source.port) as at_source, Redis(port=target.port) as at_target:
        target_id = at_target.execute_command("CLUSTER", "MYID")
        async with (
            attentive(cluster, 10) as client,
            AsyncExitStack() as leaving,
            AsyncExitStack() as stack,
        ):
            await leaving.enter_async_context(client.subscribe("a"))
            await heard(client)
            opened = client.subscription_statistics().connections_opened
            await leaving.aclose()
            # The end of that subscription will be written in the next turn only.
            for node in (at_target, at_source):
                node.execute_command("CLUSTER", "SETSLOT", hash_slot("a"), "NODE", target_id)
            channels = ("{a}2", neighbour, "a")
            entering = [stack.enter_async_context(client.subscribe(name)) for name in channels]
            subscriptions = await asyncio.gather(*entering)
            for channel, subscription in zip(channels, subscriptions, strict=True):
                await client.publish(channel, b"hello")
                assert await hear(subscription) == b"hello"
            assert client.subscription_statistics().connections_opened == opened


async def heard_again(
    client: RedisClient, channel: str, subscription: AsyncIterator[bytes]
) -> list[bytes]:
    """What was heard until something that is published durably from now on comes."""
    reading = asyncio.create_task(until_again(subscription))

    async def came() -> bool:
        try:
            await client.publish(channel, b"again")
        except exceptions.RedisError:
            return False
        return reading.done()

    await until(came)
    return await reading


async def until_again(subscription: AsyncIterator[bytes]) -> list[bytes]:
    heard = []
    async for payload in subscription:
        heard.append(payload)
        if payload == b"again":
            break
    return heard


@pytest.mark.parametrize("way", ["killed", "hung", "promoted"])
async def test_master_replaced_by_its_replica(replicated_cluster: RedisCluster, way: str) -> None:
    """When a replica takes over, its master's subscribers hear from it, and the others go on."""
    cluster = replicated_cluster
    async with attentive(cluster) as client, AsyncExitStack() as stack:
        subscriptions = await subscribe_all(client, stack)
        await heard(client)
        slot = hash_slot(CHANNELS[0])
        old = await cluster.node_of(slot)
        (replica,) = await cluster.replicas_of(old)
        match way:
            case "killed":
                await old.kill()
            case "hung":
                old.signal(signal.SIGSTOP)
            case "promoted":
                await cluster.promote(replica)
        for channel, subscription in subscriptions.items():
            payloads = await heard_again(client, channel, subscription)
            assert payloads[-1] == b"again"
        await heard(client)
        old.signal(signal.SIGCONT)
        assert await cluster.successor(slot, old) is replica
        for channel, subscription in subscriptions.items():
            await heard_again(client, channel, subscription)


async def test_dead_master_without_a_replica(cluster: RedisCluster) -> None:
    """A master that nobody replaces is missed until it is back, then its subscribers hear again."""
    async with attentive(cluster) as client, AsyncExitStack() as stack:
        subscriptions = await subscribe_all(client, stack)
        await heard(client)
        dead = await cluster.node_of(hash_slot(CHANNELS[0]))
        await dead.kill()

        async def unheard() -> bool:
            return not client.hears

        await until(unheard)
        await dead.launch()
        for channel, subscription in subscriptions.items():
            await heard_again(client, channel, subscription)
        await heard(client)


async def test_cluster_away_at_start(cluster: RedisCluster) -> None:
    """A process that starts before its cluster hears once the cluster is there."""
    for node in cluster.nodes:
        await node.kill()
    async with attentive(cluster) as client:
        with pytest.raises(exceptions.TimeoutError, match="no node tells"):
            await client.subscribe("a").__aenter__()
        assert client.subscription_statistics().channels == 0
        for node in cluster.nodes:
            await node.launch()
        await heard(client)
        async with client.subscribe("a") as subscription:
            await heard_again(client, "a", subscription)


async def test_stopped(cluster: RedisCluster) -> None:
    """Stopping the client ends all its links and leaves no task behind."""
    before = asyncio.all_tasks()
    async with attentive(cluster) as client, client.subscribe("a") as subscription:
        await heard(client)
        await client.stop()
        with pytest.raises(exceptions.ConnectionError, match="stopped"):
            await anext(subscription)
    assert asyncio.all_tasks() == before


async def canaries(cluster: RedisCluster, node: RedisServer) -> list[str]:
    """The shard channels on which a process proves that it hears this node."""
    names = await cluster.admin(node).ask("PUBSUB", "SHARDCHANNELS")
    return [name for name in names if name.startswith(CANARY_PREFIX)]


async def test_slot_of_a_canary_moves(sharded_cluster: RedisCluster) -> None:
    """The proof that a node is heard goes on when its own channel has to go elsewhere."""
    cluster = sharded_cluster
    source = cluster.nodes[0]
    async with attentive(cluster) as client:
        client.open_subscriptions()
        await heard(client)
        opened = client.subscription_statistics().connections_opened
        (canary,) = await canaries(cluster, source)
        await cluster.migrate(hash_slot(canary), cluster.nodes[1])

        async def replaced() -> bool:
            names = await canaries(cluster, source)
            return len(names) == 1 and names != [canary]

        await until(replaced)
        await heard(client)
        statistics = client.subscription_statistics()
        assert (statistics.connections_opened, statistics.times_deaf) == (opened, 0)


async def test_node_that_joins(sharded_cluster: RedisCluster, hear: Next) -> None:
    """A node that is new to the cluster is heard once it has slots."""
    cluster = sharded_cluster
    async with attentive(cluster) as client, AsyncExitStack() as stack:
        subscriptions = await subscribe_all(client, stack)
        await heard(client)
        opened = client.subscription_statistics().connections_opened
        node = await cluster.add_master()
        for channel in CHANNELS[:3]:
            await cluster.migrate(hash_slot(channel), node)
        for channel, subscription in subscriptions.items():
            assert (await heard_again(client, channel, subscription))[-1] == b"again"

        async def linked() -> bool:
            return client.subscription_statistics().connections_opened == opened + 1

        await until(linked)
        await heard(client)
        await cluster.admin(node).publish("room:29", "from the new one")
        while await hear(subscriptions["room:29"]) != b"from the new one":
            pass


async def test_node_that_the_others_have_forgotten(
    replicated_cluster: RedisCluster, hear: Next
) -> None:
    """A node that answers but is not told what others publish does not keep its subscribers."""
    cluster = replicated_cluster
    *others, replica = cluster.nodes
    url = f"redis+cluster://127.0.0.1:{replica.port}"
    async with (
        RedisClient(client_id="attentive", redis_url=url, timeout_s=TIMEOUT_S) as client,
        client.subscribe("a") as subscription,
    ):
        await heard(client)
        assert "a" in await cluster.admin(replica).pubsub_channels()
        name = await cluster.admin(replica).ask("CLUSTER", "MYID")
        for node in others:
            await cluster.admin(node).ask("CLUSTER", "FORGET", name)

        async def found_deaf() -> bool:
            return client.subscription_statistics().times_deaf > 0

        await until(found_deaf)
        await heard(client)
        assert client.subscription_statistics().connections_opened >= 5
        for node in others:
            await cluster.admin(node).publish("a", "hello")
            assert await hear(subscription) == b"hello"


async def publish_elsewhere(client: RedisClient, payload: bytes) -> None:
    await client._commands.publish("elsewhere", payload)


async def test_deaf_to_the_cluster(cluster: RedisCluster) -> None:
    """A link that does not bring what is published on other nodes is replaced by another one."""
    async with attentive(cluster) as publisher:
        await assert_replaces_deaf_links(
            cluster,
            publish=lambda _, payload: publish_elsewhere(publisher, payload),
            spublish=publisher._commands.spublish,
        )


async def test_deaf_to_shards(sharded_cluster: RedisCluster) -> None:
    """Links that do not bring what is published to their shards are replaced, and no other."""
    async with attentive(sharded_cluster) as publisher:
        await assert_replaces_deaf_links(
            sharded_cluster,
            publish=publisher._commands.publish,
            spublish=lambda _, payload: publish_elsewhere(publisher, payload),
        )


async def assert_replaces_deaf_links(
    cluster: RedisCluster, *, publish: Publish, spublish: Publish
) -> None:
    async with SubscriptionHub(
        RedisAddress.parse(cluster.url),
        client_name="hub",
        publish=publish,
        spublish=spublish,
        timeout_s=TIMEOUT_S,
    ) as hub:
        hub.open()

        async def found() -> bool:
            return hub.statistics().times_deaf >= 6

        await until(found)
        statistics = hub.statistics()
        assert not statistics.hears
        # Each time a link was found deaf it was connected anew, and no other was.
        renewed = statistics.connections_opened - (1 + len(cluster.nodes))
        assert statistics.times_deaf - 3 <= renewed <= statistics.times_deaf


async def test_many_channels_come_back(cluster: RedisCluster) -> None:
    """After all connections are lost, every one of 1,200 channels is heard again."""
    names = [f"batch:{number}" for number in range(1200)]
    async with attentive(cluster, 10) as client, AsyncExitStack() as stack:
        entering = [stack.enter_async_context(client.subscribe(name)) for name in names]
        subscriptions = dict(zip(names, await asyncio.gather(*entering), strict=True))
        await heard(client)
        opened = client.subscription_statistics().connections_opened
        for node in cluster.nodes:
            for kind in ("pubsub", "normal"):
                await cluster.admin(node).client_kill_filter(_type=kind, skipme=True)

        async def opened_again() -> bool:
            return client.subscription_statistics().connections_opened == 2 * opened

        await until(opened_again)
        await heard(client)
        for name, subscription in subscriptions.items():
            await client.publish(name, b"hello")
            assert await anext(subscription) == b"hello"


async def test_forbidden_channel(cluster: RedisCluster, hear: Next) -> None:
    """Who subscribes a channel that an access list forbids is told so; others are served."""
    rules = ["on", ">secret", "~*", "+@all", "resetchannels", "&open:*", f"&{CANARY_PREFIX}*"]
    for node in cluster.nodes:
        await cluster.admin(node).ask("ACL", "SETUSER", "listener", *rules)
    url = cluster.url.replace("://", "://listener:secret@")
    async with (
        RedisClient(client_id="listener", redis_url=url, timeout_s=10) as client,
        client.subscribe("open:a") as subscription,
    ):
        with pytest.raises(exceptions.NoPermissionError):
            await client.subscribe("closed:a").__aenter__()
        await heard(client)
        await client.publish("open:a", b"hello")
        assert await hear(subscription) == b"hello"
        assert client.subscription_statistics().channels == 1


async def come_and_go(client: RedisClient, channel: str, moved: asyncio.Event) -> int:
    """How often a subscriber came, heard what was published after that, and left."""
    memberships = 0
    while not moved.is_set():
        async with client.subscribe(channel, mark_gaps=True) as subscription:
            await heard_again(client, channel, subscription)
        memberships += 1
    return memberships


async def test_churn_while_slots_move(cluster: RedisCluster) -> None:
    """Subscribers that come and go while their slots move all hear, and leave nothing behind."""
    moved = asyncio.Event()
    async with attentive(cluster, 10) as client:
        async with asyncio.TaskGroup() as tasks:
            coming = [
                tasks.create_task(come_and_go(client, channel, moved)) for channel in CHANNELS * 2
            ]
            try:
                # Each once: nodes that are told the contrary too soon do not always agree again.
                for channel in CHANNELS:
                    source = await cluster.node_of(hash_slot(channel))
                    await cluster.migrate(hash_slot(channel), await other_master(cluster, source))
            finally:
                moved.set()
        assert sum(task.result() for task in coming) > len(coming)
        assert client.subscription_statistics().channels == 0

        async def left() -> bool:
            return not await channels_left(cluster)

        await until(left)
        await heard(client)


@pytest.mark.parametrize("newer", [*filter(None, [installed_redis_server()])], ids=["installed"])
async def test_node_that_is_upgraded(newer: Path, hear: Next) -> None:
    """A node that comes back with a version that has shard channels is heard on these too."""
    async with (
        RedisCluster(embedded_redis_server()) as cluster,
        attentive(cluster) as client,
        AsyncExitStack() as stack,
    ):
        subscriptions = await subscribe_all(client, stack)
        await heard(client)
        node = await cluster.node_of(hash_slot(CHANNELS[0]))
        await node.kill()
        node._binary = newer
        await node.launch()

        async def subscribed() -> bool:
            return await shard_subscribers(cluster, node, CHANNELS[0]) == 1

        await until(subscribed)
        await cluster.admin(node).ask("SPUBLISH", CHANNELS[0], "hello")
        assert isinstance(await hear(subscriptions[CHANNELS[0]]), Gap)
        assert await hear(subscriptions[CHANNELS[0]]) == b"hello"
        await heard(client)
