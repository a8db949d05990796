"""The commands of the client, and how it behaves when Redis does not."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Any

import pytest
from redis import exceptions

from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_server import RedisServer
from huleedu_service_libs.testing.redis_cluster import RedisCluster
from huleedu_service_libs.testing.redis_sentinels import RedisSentinels

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from redis.asyncio import Redis

    from huleedu_service_libs.protocols import AtomicRedisClientProtocol
    from libs.huleedu_service_libs.tests.redis.conftest import Next, Until

TIMEOUT_S = 0.6


def client_is_what_services_depend_on(client: RedisClient) -> AtomicRedisClientProtocol:
    """Checked by mypy: the client satisfies the protocol."""
    return client


@pytest.fixture(params=["server", "sentinels", "cluster"])
async def client_anywhere(
    request: pytest.FixtureRequest, redis_binary: Path
) -> AsyncIterator[RedisClient]:
    topologies = {"server": RedisServer, "sentinels": RedisSentinels, "cluster": RedisCluster}
    async with (
        topologies[request.param](redis_binary) as running,
        RedisClient(client_id="test", redis_url=running.url) as client,
    ):
        yield client


async def test_commands(client_anywhere: RedisClient) -> None:
    """Each operation of the protocol does what redis-py's operation of that name does."""
    protocol = client_is_what_services_depend_on(client_anywhere)
    table: list[tuple[str, Awaitable[object], object]] = [
        ("ping", protocol.ping(), True),
        ("claim a free key", protocol.set_if_not_exists("k", "1", ttl_seconds=50), True),
        ("claim a taken key", protocol.set_if_not_exists("k", "2"), False),
        ("get", protocol.get("k"), "1"),
        ("get nothing", protocol.get("nothing"), None),
        ("ttl", protocol.ttl("k"), 50),
        ("ttl of nothing", protocol.ttl("nothing"), -2),
        ("expire", protocol.expire("k", 90), True),
        ("expire nothing", protocol.expire("nothing", 90), False),
        ("setex", protocol.setex("k", 70, "ö🦐"), True),
        ("get text", protocol.get("k"), "ö🦐"),
        ("exists", protocol.exists("k", "k", "nothing"), 2),
        ("delete one", protocol.delete_key("k"), 1),
        ("delete nothing", protocol.delete_key("k"), 0),
        ("sadd", protocol.sadd("s", "a", "b", "a"), 2),
        ("scard", protocol.scard("s"), 2),
        ("smembers", protocol.smembers("s"), {"a", "b"}),
        ("srem", protocol.srem("s", "a", "x"), 1),
        ("spop", protocol.spop("s"), "b"),
        ("spop nothing", protocol.spop("s"), None),
        ("zadd", protocol.zadd("z", {"a": 1.5, "b": 2}), 2),
        ("zadd again", protocol.zadd("z", {"a": 3}), 0),
        ("zrem", protocol.zrem("z", "a", "x"), 1),
        ("hset", protocol.hset("h", "f", "v"), 1),
        ("hset again", protocol.hset("h", "f", "w"), 0),
        ("hget", protocol.hget("h", "f"), "w"),
        ("hget nothing", protocol.hget("h", "x"), None),
        ("hlen", protocol.hlen("h"), 1),
        ("hgetall", protocol.hgetall("h"), {"f": "w"}),
        ("hexists", protocol.hexists("h", "f"), True),
        ("hexists nothing", protocol.hexists("h", "x"), False),
        ("rpush", protocol.rpush("l", "b", "c"), 2),
        ("lpush", protocol.lpush("l", "a"), 3),
        ("lrange", protocol.lrange("l", 0, -1), ["a", "b", "c"]),
        ("llen", protocol.llen("l"), 3),
        ("blpop", protocol.blpop(["{l}nothing", "l"], timeout=1), ("l", "a")),
        ("blpop nothing", protocol.blpop(["nothing"], timeout=0.02), None),
        ("delete", protocol.delete("h", "l", "z", "nothing"), 3),
        ("publish", protocol.publish("nobody", "x"), 0),
    ]
    for name, operation, expected in table:
        assert (name, await operation) == (name, expected)


async def test_scan_finds_every_key_once(client: RedisClient, admin: Redis) -> None:
    """Scanning names every key that matches, once, also while the table grows."""
    await admin.mset({f"scan:{i}": i for i in range(2000)})
    await admin.mset({f"other:{i}": i for i in range(500)})
    found = await client.scan_pattern("scan:*")
    assert len(found) == 2000
    assert set(found) == {f"scan:{i}" for i in range(2000)}


def impatient(url: str, timeout_s: float = TIMEOUT_S, **options: Any) -> RedisClient:
    return RedisClient(client_id="impatient", redis_url=url, timeout_s=timeout_s, **options)


OPERATIONS: dict[str, Callable[[RedisClient], Awaitable[object]]] = {
    "ping": lambda client: client.ping(),
    "publish": lambda client: client.publish("a", b"x"),
    "blpop without an end": lambda client: client.blpop(["nothing"]),
    "transaction": lambda client: client.create_transaction_pipeline("k"),
    "script": lambda client: client.register_script("return 1"),
    "scan": lambda client: client.scan_pattern("*"),
}


@pytest.mark.parametrize("connected", [True, False], ids=["connected", "not connected"])
async def test_hung_redis(server: RedisServer, *, connected: bool) -> None:
    """Every operation fails within its timeout when Redis hangs, and works when it goes on."""
    loop = asyncio.get_running_loop()

    async def measure(client: RedisClient, name: str) -> tuple[str, object, bool]:
        started_at = loop.time()
        try:
            await OPERATIONS[name](client)
        except exceptions.TimeoutError:
            return name, "timeout", loop.time() - started_at < 1.8 * TIMEOUT_S
        return name, "no timeout", False

    async with impatient(server.url) as client:
        if connected:
            await asyncio.gather(*(client.ping() for _ in OPERATIONS))
        server.signal(signal.SIGSTOP)
        measured = await asyncio.gather(*(measure(client, name) for name in OPERATIONS))
        assert measured == [(name, "timeout", True) for name in OPERATIONS]
        server.signal(signal.SIGCONT)
        assert await client.ping()


async def test_a_full_pool_counts_into_the_timeout(server: RedisServer) -> None:
    """Waiting for a connection, opening it and the answer share one timeout; none leaks."""
    loop = asyncio.get_running_loop()
    async with impatient(server.url, max_connections=2) as client:
        server.signal(signal.SIGSTOP)
        started_at = loop.time()
        outcomes = await asyncio.gather(*(client.ping() for _ in range(10)), return_exceptions=True)
        assert loop.time() - started_at < 1.8 * TIMEOUT_S
        assert {type(outcome) for outcome in outcomes} == {exceptions.TimeoutError}
        server.signal(signal.SIGCONT)
        assert all(await asyncio.gather(*(client.ping() for _ in range(10))))


async def test_a_watch_that_fails_gives_its_connection_back(server: RedisServer) -> None:
    """A transaction that can't begin leaves the pool as it was."""
    async with impatient(server.url, 0.3, max_connections=1) as client:
        server.signal(signal.SIGSTOP)
        for _ in range(2):
            with pytest.raises(exceptions.TimeoutError):
                await client.create_transaction_pipeline("k")
        server.signal(signal.SIGCONT)
        assert await client.ping()


async def test_dead_redis(server: RedisServer) -> None:
    """Without a Redis, an operation fails at once."""
    async with impatient(server.url, 60) as client:
        await client.ping()
        await server.kill()
        async with asyncio.timeout(10):
            for _ in range(3):
                with pytest.raises(exceptions.ConnectionError):
                    await client.ping()


async def test_restart_costs_no_command(server: RedisServer) -> None:
    """After Redis was restarted, no operation fails for the connections that died with it."""
    async with impatient(server.url, 10) as client:
        assert all(await asyncio.gather(*(client.ping() for _ in range(20))))
        await server.kill()
        await server.launch()
        assert all(await asyncio.gather(*(client.ping() for _ in range(20))))


@pytest.fixture
async def heard(client: RedisClient) -> AsyncIterator[AsyncIterator[bytes]]:
    async with client.subscribe("once") as subscription:
        yield subscription


@pytest.mark.parametrize("query", ["", "?retry_on_timeout=true&protocol=3&socket_timeout=99"])
async def test_a_publish_is_not_repeated(
    server: RedisServer,
    client: RedisClient,
    admin: Redis,
    until: Until,
    hear: Next,
    heard: AsyncIterator[bytes],
    query: str,
) -> None:
    """A publish whose connection breaks before the answer fails, and nobody sends it again."""
    async with impatient(f"{server.url}{query}", 30) as publisher:
        await publisher.ping()
        await admin.client_pause(20_000, all=False)
        publishing = asyncio.create_task(publisher.publish("once", b"maybe"))

        async def sent() -> bool:
            return any(c["cmd"] == "publish" for c in await admin.client_list())

        await until(sent)
        for connection in await admin.client_list():
            if connection["name"] == "impatient":
                await admin.client_kill_filter(_id=connection["id"])
        with pytest.raises(exceptions.ConnectionError):
            await publishing
        await admin.client_unpause()
        await client.publish("once", b"last")
        assert await hear(heard) == b"last"


async def test_a_late_publish_is_not_repeated(
    server: RedisServer, client: RedisClient, hear: Next, heard: AsyncIterator[bytes]
) -> None:
    """A publish that timed out may still arrive, but never twice."""
    async with impatient(server.url) as publisher:
        await publisher.ping()
        server.signal(signal.SIGSTOP)
        with pytest.raises(exceptions.TimeoutError, match=r"PUBLISH within 0\.6 s"):
            await publisher.publish("once", b"maybe")
        server.signal(signal.SIGCONT)
        await client.publish("once", b"last")
        received = [await hear(heard)]
        while received[-1] != b"last":
            received.append(await hear(heard))
    assert received.count(b"maybe") <= 1


async def test_blpop_waits_longer_than_the_timeout(server: RedisServer) -> None:
    """Waiting for an element may take longer than the time Redis has for an answer."""
    loop = asyncio.get_running_loop()
    async with impatient(server.url, 0.8) as client:
        started_at = loop.time()
        assert await client.blpop(["queue"], timeout=1.0) is None
        assert loop.time() - started_at >= 1.0
        waiting = asyncio.create_task(client.blpop(["queue"]))
        # Longer than the timeout, so that the wait has been renewed.
        assert await client.blpop(["nothing"], timeout=0.9) is None
        await client.rpush("queue", "element")
        assert await waiting == ("queue", "element")
        assert await client.llen("queue") == 0


async def test_scripts_survive_flush_and_restart(
    server: RedisServer, client: RedisClient, admin: Redis
) -> None:
    """A registered script runs also after Redis has forgotten it."""
    sha = await client.register_script("return {KEYS[1], ARGV[1], tonumber(ARGV[2])}")
    expected = ["k", "ö", 3]
    assert await client.execute_script(sha, ["k"], ["ö", 3]) == expected
    await admin.script_flush()
    assert await client.execute_script(sha, ["k"], ["ö", 3]) == expected
    await server.kill()
    await server.launch()
    assert await client.execute_script(sha, ["k"], ["ö", 3]) == expected
    with pytest.raises(exceptions.NoScriptError):
        await client.execute_script("0" * 40, [], [])


async def test_transaction_notices_a_concurrent_change(client: RedisClient) -> None:
    """A transaction on a watched key does nothing if somebody changed the key meanwhile."""
    await client.setex("balance", 60, "1")
    async with await client.create_transaction_pipeline("balance") as pipeline:
        assert await pipeline.get("balance") == "1"
        pipeline.multi()  # type: ignore[no-untyped-call]  # redis-py's
        pipeline.set("balance", "2")
        assert await pipeline.execute() == [True]
    async with await client.create_transaction_pipeline("balance") as pipeline:
        await client.setex("balance", 60, "changed")
        pipeline.multi()  # type: ignore[no-untyped-call]  # redis-py's
        pipeline.set("balance", "3")
        with pytest.raises(exceptions.WatchError):
            await pipeline.execute()
    assert await client.get("balance") == "changed"


async def test_transaction_without_watch(client: RedisClient) -> None:
    """Commands of a transaction are queued and carried out together."""
    async with await client.create_transaction_pipeline() as pipeline:
        pipeline.set("a", "1")
        pipeline.get("a")
        assert await client.get("a") is None
        assert await pipeline.execute() == [True, "1"]


async def test_any_client_id_names_the_connection(server: RedisServer, admin: Redis) -> None:
    """A client id with spaces or letters that Redis refuses in a name still works."""
    async with (
        RedisClient(client_id="tjänst nr 1\n", redis_url=server.url) as client,
        client.subscribe("a"),
    ):
        await client.ping()
        names = {c["name"] for c in await admin.client_list()}
    assert {"tj-nst-nr-1-", "tj-nst-nr-1-:subscriptions"} <= names
