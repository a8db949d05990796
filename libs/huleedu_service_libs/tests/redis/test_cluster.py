"""Commands for a Redis Cluster, while slots move and nodes come and go."""

from __future__ import annotations

import asyncio
import signal
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from redis import exceptions

from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_cluster_routes import slot_of
from huleedu_service_libs.redis_scripts import Script, ScriptCall
from huleedu_service_libs.testing.polling import until
from huleedu_service_libs.testing.redis_cluster import RedisCluster

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from huleedu_service_libs.redis_server import RedisServer
    from libs.huleedu_service_libs.tests.redis.conftest import Adding, StartServer

IMPATIENT_S = 0.6
PATIENT_S = 20.0

# Nodes serve their slots also while others are not served.
NOT_WHOLE = {"cluster-require-full-coverage": "no"}

# One in the slots of each of three masters.
KEYS = ("b", "c", "a")
APPEND = Script("redis.call('RPUSH', KEYS[1], ARGV[1]); return {KEYS[1], ARGV[1]}")
WRONG = Script("return redis.call('LPUSH', KEYS[1], 'x')")


def client_of(url: str, timeout_s: float = PATIENT_S, **options: Any) -> RedisClient:
    return RedisClient(client_id="test", redis_url=url, timeout_s=timeout_s, **options)


# A Cluster takes two seconds to begin with.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_cluster(redis_binary: Path) -> AsyncIterator[RedisCluster]:
    async with RedisCluster(redis_binary) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def cluster(shared_cluster: RedisCluster) -> RedisCluster:
    """Without keys; its slots may be anywhere."""
    for node in shared_cluster.nodes:
        await shared_cluster.admin(node).flushall()
    return shared_cluster


@pytest_asyncio.fixture(loop_scope="module")
async def replicated(redis_binary: Path) -> AsyncIterator[RedisCluster]:
    async with RedisCluster(redis_binary, replicas_per_master=1, options=NOT_WHOLE) as running:
        yield running


async def other_than(cluster: RedisCluster, node: RedisServer) -> RedisServer:
    """Another master."""
    return next(one for one in cluster.nodes[:3] if one is not node)


async def test_keys_of_all_nodes(cluster: RedisCluster) -> None:
    """Commands find the node of their key, those for several keys go to several nodes."""
    assert len({await cluster.node_of(slot_of(key)) for key in KEYS}) == 3
    many = [f"scan:{number}" for number in range(1500)]
    async with client_of(cluster.url) as client:
        assert await client.ping()
        await asyncio.gather(*(client.setex(key, 600, "v") for key in (*KEYS, *many)))
        assert await client.exists(*KEYS, "nothing", KEYS[0]) == 4
        assert sorted(await client.scan_pattern("scan:*")) == sorted(many)
        assert await client.delete(*many, "nothing") == 1500
        assert sorted(await client.scan_pattern("*")) == sorted(KEYS)
        with pytest.raises(exceptions.ClusterCrossSlotError):
            await client.blpop(KEYS)


async def test_scripts_on_all_nodes(cluster: RedisCluster) -> None:
    """A script runs wherever its keys are, also where a node has forgotten it."""
    async with client_of(cluster.url) as client:
        sha = await client.register_script("return {KEYS[1], ARGV[1]}")
        assert await client.execute_script(sha, [], ["x"]) == []
        for _ in range(2):
            for key in KEYS:
                assert await client.execute_script(sha, [key], ["ö"]) == [key, "ö"]
                assert await client.run_script(APPEND, [key], ["ö"]) == [key.encode(), "ö".encode()]
            for node in cluster.nodes:
                await cluster.admin(node).script_flush()
        assert [await client.llen(key) for key in KEYS] == [2, 2, 2]
        with pytest.raises(exceptions.NoScriptError):
            await client.execute_script("0" * 40, ["a"], [])


async def test_many_scripts_at_once(cluster: RedisCluster) -> None:
    """Replies come in the order of the calls, errors among them, each call is made once."""
    async with client_of(cluster.url) as client:
        await client.setex("{a}text", 600, "v")
        calls = [ScriptCall(APPEND, [key], [number]) for number in range(50) for key in KEYS]
        calls.insert(10, ScriptCall(WRONG, ["{a}text"]))
        calls.insert(20, ScriptCall(APPEND, ["a", "b"], ["x"]))
        for repetition in range(1, 3):
            replies = await client.run_scripts(calls)
            assert isinstance(replies.pop(20), exceptions.ClusterCrossSlotError)
            assert "WRONGTYPE" in str(replies.pop(10))
            assert replies == [
                [key.encode(), b"%d" % number] for number in range(50) for key in KEYS
            ]
            for key in KEYS:
                expected = [str(number) for number in range(50)] * repetition
                assert await client.lrange(key, 0, -1) == expected
            await cluster.admin(cluster.nodes[1]).script_flush()
        assert await client.run_scripts([]) == []


async def test_transactions(cluster: RedisCluster) -> None:
    """A transaction is carried out where its keys are; keys of two slots are refused."""
    async with client_of(cluster.url) as client:
        for key in KEYS:
            async with await client.create_transaction_pipeline() as pipeline:
                pipeline.set(key, "1")
                pipeline.get(key)
                assert await pipeline.execute() == [True, "1"]
            async with await client.create_transaction_pipeline(key) as pipeline:
                assert await pipeline.get(key) == "1"
                await client.setex(key, 600, "2")
                pipeline.multi()  # type: ignore[no-untyped-call]  # redis-py's
                pipeline.set(key, "3")
                with pytest.raises(exceptions.WatchError):
                    await pipeline.execute()
            assert await client.get(key) == "2"
        async with await client.create_transaction_pipeline() as pipeline:
            assert await pipeline.execute() == []
            pipeline.set("a", "4")
            pipeline.set("b", "4")
            with pytest.raises(exceptions.ClusterCrossSlotError):
                await pipeline.execute()
        assert await client.get("a") == "2"


async def test_publish_command(cluster: RedisCluster) -> None:
    """Where channels belong to slots, scripts and clients publish to the slot's node."""
    admin = cluster.admin(cluster.nodes[0])
    sharded = (await admin.ask("COMMAND", "INFO", "SPUBLISH"))[0] is not None
    async with client_of(cluster.url) as client:
        command = await client.publish_command()
        assert command == ("SPUBLISH" if sharded else "PUBLISH")
        publish = Script(f"return redis.call('{command}', KEYS[1], ARGV[1])")
        for channel in KEYS:
            pubsub = cluster.admin(await cluster.node_of(slot_of(channel))).pubsub()
            async with pubsub:
                await (pubsub.ssubscribe if sharded else pubsub.subscribe)(channel)
                await pubsub.get_message(timeout=PATIENT_S)
                assert await client.publish(channel, b"x") == 1
                assert await client.run_script(publish, [channel], [b"x"]) == 1


async def test_slot_moves(cluster: RedisCluster) -> None:
    """Whatever stage the move of a slot is in, everything finds its keys, and does it once."""
    slot = slot_of("ws:teacher-1")
    source = await cluster.node_of(slot)
    target = await other_than(cluster, source)
    async with client_of(cluster.url) as client, client_of(cluster.url) as newcomer:
        old = "{ws:teacher-1}old"
        rounds = 0

        async def use_everything() -> None:
            nonlocal rounds
            rounds += 1
            new = f"{{ws:teacher-1}}new{rounds}"
            for key in (old, new):
                assert await client.rpush(key, "x")
                assert await client.run_script(APPEND, [key], ["y"])
                calls = [ScriptCall(APPEND, [key], [number]) for number in range(3)]
                replies = await client.run_scripts([*calls, ScriptCall(APPEND, ["a"], ["z"])])
                assert not [reply for reply in replies if isinstance(reply, Exception)]
                async with await client.create_transaction_pipeline() as pipeline:
                    pipeline.rpush(key, "t")
                    pipeline.rpush(key, "u")
                    assert len(await pipeline.execute()) == 2
            await client.publish_user_notification("teacher-1", "batch_results_ready", {})
            assert await client.lrange(new, 0, -1) == list("xy012tu")
            assert await client.llen(old) == 7 * rounds
            assert await client.llen("a") == 2 * rounds
            assert len(await client.history.kept("teacher-1", max_entries=99)) == rounds

        await use_everything()
        async with cluster.migrating(slot, target):
            await use_everything()
            await cluster.move_keys(slot, target)
            await use_everything()
        await use_everything()
        # One that has seen nothing of all this.
        assert await newcomer.llen(old) == 28
        await cluster.migrate(slot, source)
        assert await newcomer.llen(old) == 28
        await use_everything()


async def test_keys_on_both_sides(cluster: RedisCluster) -> None:
    """What Redis can't do in the middle of a move is refused at last, or done when it has ended."""
    source = await cluster.node_of(slot_of("k"))
    target = await other_than(cluster, source)
    both = ["{k}new", "{k}old"]
    script = Script("return redis.call('MGET', KEYS[1], KEYS[2])")
    async with client_of(cluster.url) as client, client_of(cluster.url, IMPATIENT_S) as hasty:
        await client.setex("{k}old", 600, "v")
        async with cluster.migrating(slot_of("k"), target):
            with pytest.raises(exceptions.TryAgainError):
                await hasty.run_script(script, both, [])
            replies = await hasty.run_scripts([ScriptCall(script, both), ScriptCall(APPEND, ["a"])])
            assert isinstance(replies[0], exceptions.TryAgainError)
            with pytest.raises(exceptions.AskError):
                await hasty.create_transaction_pipeline("{k}new")
            async with await client.create_transaction_pipeline("{k}old") as pipeline:
                await cluster.move_keys(slot_of("k"), target)
                pipeline.multi()  # type: ignore[no-untyped-call]  # redis-py's
                pipeline.set("{k}old", "w")
                with pytest.raises(exceptions.WatchError):
                    await pipeline.execute()
            waiting = [
                asyncio.create_task(client.run_script(script, both, [])),
                asyncio.create_task(client.run_scripts([ScriptCall(script, both)])),
            ]
        assert await waiting[0] == [None, b"v"]
        assert await waiting[1] == [[None, b"v"]]


async def test_watched_slot_moves(cluster: RedisCluster) -> None:
    """A transaction whose watched key moves to another node does nothing, and can be repeated."""
    source = await cluster.node_of(slot_of("k"))
    target = await other_than(cluster, source)
    async with client_of(cluster.url) as client:
        for to_node, asked in ((target, False), (source, True)):
            async with await client.create_transaction_pipeline("k") as pipeline:
                await cluster.migrate(slot_of("k"), to_node)
                if asked:
                    with pytest.raises(exceptions.WatchError, match="moving"):
                        await pipeline.get("k")
                else:
                    pipeline.multi()  # type: ignore[no-untyped-call]  # redis-py's
                    pipeline.set("k", "w")
                    with pytest.raises(exceptions.WatchError, match="moving"):
                        await pipeline.execute()
            async with await client.create_transaction_pipeline("k") as pipeline:
                pipeline.multi()  # type: ignore[no-untyped-call]  # redis-py's
                pipeline.set("k", "v")
                assert await pipeline.execute() == [True]


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
async def test_master_fails(replicated: RedisCluster, fault: signal.Signals) -> None:
    """Keys of other nodes stay in reach; those of a lost one are as soon as its replica serves."""
    lost = await replicated.node_of(slot_of("a"))
    async with client_of(replicated.url, IMPATIENT_S) as client:
        await asyncio.gather(*(client.setex("a", 600, "v") for _ in range(20)))
        lost.signal(fault)
        with pytest.raises((exceptions.ConnectionError, exceptions.TimeoutError)):
            await client.setex("a", 600, "lost")
        for key in ("b", "c"):
            assert await client.setex(key, 600, "v")
        calls = [ScriptCall(APPEND, [f"{{{key}}}list"], ["x"]) for key in KEYS]
        *others, failed = await client.run_scripts(calls)
        assert others == [[b"{b}list", b"x"], [b"{c}list", b"x"]]
        assert isinstance(failed, exceptions.ConnectionError | exceptions.TimeoutError)
        await replicated.successor(slot_of("a"), lost)
        assert all(await asyncio.gather(*(client.setex("a", 600, "v") for _ in range(20))))
        assert await client.ping()


async def test_replica_takes_over(replicated: RedisCluster) -> None:
    """A master that hands over to its replica costs nobody a command."""
    old = await replicated.node_of(slot_of("a"))
    (replica,) = await replicated.replicas_of(old)
    async with client_of(replicated.url) as client:
        assert await client.rpush("a", "x")
        await replicated.promote(replica)
        await replicated.successor(slot_of("a"), old)
        assert await client.rpush("a", "y") == 2
        assert await client.lrange("a", 0, -1) == ["x", "y"]


async def test_nothing_is_sent_twice(replicated: RedisCluster, adding: Adding) -> None:
    """What is added to a list while its slot moves and a master dies is there once at most."""
    source = await replicated.node_of(slot_of("k"))
    target = await other_than(replicated, source)
    async with client_of(replicated.url) as client:

        async def push(entry: str) -> None:
            if entry.endswith(("1", "3", "5")):
                await client.rpush("k", entry)
            else:
                (reply,) = await client.run_scripts([ScriptCall(APPEND, ["k"], [entry])])
                if isinstance(reply, Exception):
                    raise reply

        async with adding(push) as additions:
            for to_node in (target, source):
                await additions.more()
                await replicated.migrate(slot_of("k"), to_node)
            await additions.more()
            await source.kill()
            await replicated.successor(slot_of("k"), source)
            served_again = await additions.more()
        found = await client.lrange("k", 0, -1)
    assert len(found) == len(set(found))
    assert set(additions.acknowledged[served_again:]) <= set(found)


async def test_where_to_begin(redis_binary: Path) -> None:
    """One node of those in the address is enough, and later any that they have named."""
    async with RedisCluster(redis_binary, options=NOT_WHOLE) as cluster:
        node = await cluster.node_of(slot_of("b"))
        url = f"redis+cluster://127.0.0.1:1,127.0.0.1:{node.port}"
        async with client_of(url) as client, client_of(url) as late:
            assert await client.ping()
            await node.kill()
            with pytest.raises(exceptions.ConnectionError):
                await client.get("b")
            assert await client.setex("c", 600, "v")
            with pytest.raises(exceptions.ConnectionError):
                await late.get("c")


async def test_no_cluster(redis_binary: Path, start_server: StartServer) -> None:
    """A client starts without any node, says whom it asked, and works once they are back."""
    async with RedisCluster(redis_binary) as cluster:
        for node in cluster.nodes:
            await node.kill()
        async with client_of(cluster.url) as client:
            with pytest.raises(exceptions.ConnectionError) as away:
                await client.get("a")
            for node in cluster.nodes:
                assert f"127.0.0.1:{node.port}: " in str(away.value)
                await node.launch()
            await until(partial(serves, client))
    async with (
        start_server() as single,
        client_of(f"redis+cluster://127.0.0.1:{single.port}") as client,
    ):
        with pytest.raises(exceptions.ConnectionError, match="cluster support disabled"):
            await client.get("a")


async def serves(client: RedisClient) -> bool:
    try:
        return await client.get("a") is None
    except exceptions.ClusterDownError:
        return False


async def test_hung_nodes(redis_binary: Path) -> None:
    """Nodes that all hang cost a command no more than its time, also the first one."""
    async with RedisCluster(redis_binary) as cluster:
        for node in cluster.nodes:
            node.signal(signal.SIGSTOP)
        async with client_of(cluster.url, IMPATIENT_S) as client:
            with pytest.raises(exceptions.TimeoutError, match=r"within 0\.6 s"):
                await client.get("a")
            with pytest.raises(exceptions.TimeoutError, match=r"within 0\.6 s"):
                await client.run_scripts([ScriptCall(APPEND, ["a"], ["x"])])


async def test_password(redis_binary: Path) -> None:
    """All nodes have one password; a wrong one is told from a right one."""
    options = {"requirepass": "s3cret", "masterauth": "s3cret"}
    async with RedisCluster(redis_binary, options=options) as cluster:
        async with client_of(cluster.url.replace("://", "://:s3cret@")) as client:
            assert await client.ping()
        for wrong in (cluster.url, f"{cluster.url}?password=wrong"):
            async with client_of(wrong) as client:
                with pytest.raises(exceptions.AuthenticationError):
                    await client.ping()


async def test_pool_is_bounded(cluster: RedisCluster) -> None:
    """A client never has more connections to a node than it was allowed."""
    async with client_of(cluster.url, max_connections=2) as client:
        await asyncio.gather(*(client.get(f"{number}") for number in range(60)))
        for node in cluster.nodes:
            clients = await cluster.admin(node).client_list(_type="normal")
            assert len([one for one in clients if one["name"] == "test"]) == 2
