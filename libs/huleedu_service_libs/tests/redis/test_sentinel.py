"""Commands through sentinels, while masters come and go."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from redis import exceptions

from huleedu_service_libs.notifications import Notification
from huleedu_service_libs.redis_address import Endpoint, RedisAddress
from huleedu_service_libs.redis_channels import UserKeys, user_channel
from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_scripts import Script, ScriptCall
from huleedu_service_libs.redis_sentinel import CHECK_INTERVAL_S, MAX_AGE_S, SentinelSet
from huleedu_service_libs.testing.admin import Admin
from huleedu_service_libs.testing.polling import until
from huleedu_service_libs.testing.redis_sentinels import SERVICE_NAME, RedisSentinels

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
    from pathlib import Path

    from huleedu_service_libs.redis_server import RedisServer
    from libs.huleedu_service_libs.tests.redis.conftest import Adding, StartServer

# Long beside what an answer takes, short beside a failover.
IMPATIENT_S = 0.6
PATIENT_S = 20.0
CONNECTIONS = 20

NOTIFICATION = Notification(user_id="teacher-1", event_type="phase_skipped", data={})
WRITE = Script("redis.call('SET', KEYS[1], ARGV[1]); return ARGV[1]")


@pytest.fixture
async def sentinels(redis_binary: Path) -> AsyncIterator[RedisSentinels]:
    async with RedisSentinels(redis_binary) as running:
        yield running


def client_of(url: str, timeout_s: float = PATIENT_S, **options: Any) -> RedisClient:
    return RedisClient(client_id="test", redis_url=url, timeout_s=timeout_s, **options)


@asynccontextmanager
async def connected(
    sentinels: RedisSentinels, timeout_s: float = PATIENT_S
) -> AsyncIterator[RedisClient]:
    """With many connections to the master, all of them idle."""
    async with client_of(sentinels.url, timeout_s, max_connections=CONNECTIONS) as client:
        await client.setex("k", 600, "v")
        admin = sentinels.admin(sentinels.master)
        before = len(await named(admin))
        sleepers = [asyncio.create_task(client.blpop(["q"])) for _ in range(CONNECTIONS)]
        while len(await named(admin)) < before + CONNECTIONS - 1:
            pass
        for _ in sleepers:
            await admin.ask("RPUSH", "q", "x")
        await asyncio.gather(*sleepers)
        assert await admin.wait(1, 20_000) == 1
        yield client


@contextmanager
def silent(sentinels: RedisSentinels) -> Iterator[None]:
    """The sentinels hang."""
    for sentinel in sentinels.sentinels:
        sentinel.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for sentinel in sentinels.sentinels:
            sentinel.signal(signal.SIGCONT)


async def idle(admin: Admin) -> None:
    """Wait until clients like ours have sent nothing for so long that what they know is old."""

    async def all_are_idle() -> bool:
        # In whole seconds of a clock that is read in whole seconds.
        return all(int(one["idle"]) - 1 >= MAX_AGE_S for one in await named(admin))

    await until(all_are_idle)


async def kept(sentinels: RedisSentinels) -> set[str]:
    """Ids of what the master has of the user's history."""
    history = UserKeys.of(user_channel(NOTIFICATION.user_id)).history
    entries = await sentinels.admin(sentinels.master).ask("XRANGE", history, "-", "+")
    return {entry[0] for entry in entries}


@asynccontextmanager
async def outliving(sentinels: RedisSentinels) -> AsyncIterator[RedisServer]:
    """A server that was the master until now, and believes that it is: sentinels can't tell it."""
    old = sentinels.master
    await sentinels.admin(old).acl_setuser(
        "default", enabled=True, commands=["-replicaof", "-slaveof"]
    )
    await sentinels.replace_master()
    yield old
    assert (await sentinels.admin(old).ask("ROLE"))[0] == "master"


async def named(admin: Admin) -> list[Mapping[str, str]]:
    """The connections of clients like ours."""
    return [one for one in await admin.client_list(_type="normal") if one["name"] == "test"]


async def set_everywhere(client: RedisClient) -> list[bool]:
    """As many commands at once as there are connections."""
    return await asyncio.gather(*(client.setex(f"{n}", 600, "v") for n in range(CONNECTIONS)))


async def test_master_dies(sentinels: RedisSentinels) -> None:
    """While there is no master, commands fail; once there is one, they work, every one."""
    async with connected(sentinels) as client:
        await sentinels.kill_master()
        with pytest.raises(exceptions.ConnectionError):
            await client.get("k")
        await sentinels.new_master()
        assert all(await set_everywhere(client))
        assert await client.get("k") == "v"


async def test_master_hangs(sentinels: RedisSentinels) -> None:
    """A master that hangs costs one command its time; its successor gets all that follow."""
    async with connected(sentinels, IMPATIENT_S) as client:
        sentinels.master.signal(signal.SIGSTOP)
        with pytest.raises(exceptions.TimeoutError, match=r"SET within 0\.6 s"):
            await client.setex("k", 600, "lost")
        await sentinels.new_master()
        assert all(await set_everywhere(client))
        assert await client.get("k") == "v"


async def in_transaction(client: RedisClient) -> None:
    async with await client.create_transaction_pipeline() as pipeline:
        pipeline.set("k", "w")
        await pipeline.execute()


async def first_of(client: RedisClient) -> None:
    (reply,) = await client.run_scripts([ScriptCall(WRITE, ["k"], ["w"])])
    if isinstance(reply, Exception):
        raise reply


WRITES: dict[str, Callable[[RedisClient], Awaitable[object]]] = {
    "command": lambda client: client.setex("k", 600, "w"),
    "pipeline": in_transaction,
    "script": lambda client: client.run_script(WRITE, ["k"], ["w"]),
    "scripts": first_of,
}


async def test_master_becomes_a_replica(sentinels: RedisSentinels) -> None:
    """A write that only a replica would refuse fails, and the next one finds the master."""
    async with AsyncExitStack() as stack:
        clients = {name: await stack.enter_async_context(connected(sentinels)) for name in WRITES}
        old = sentinels.master
        await sentinels.promote_replica()
        new = await sentinels.new_master()
        # By hand, so that connections to it stay: sentinels cut them.
        await sentinels.rejoin(old)
        with silent(sentinels):
            for name, client in clients.items():
                with pytest.raises(exceptions.ResponseError, match="read only replica"):
                    await WRITES[name](client)
        for name, client in clients.items():
            await sentinels.admin(new).set("k", "v")
            await WRITES[name](client)
            assert (name, await sentinels.admin(new).get("k")) == (name, "w")
            assert all(await set_everywhere(client))


async def test_busy_publisher(sentinels: RedisSentinels) -> None:
    """Who does nothing but publish soon publishes to the new master, though the old one lives."""
    async with client_of(sentinels.url) as client:

        async def is_kept() -> bool:
            receipt = await client.publish_notification(NOTIFICATION)
            return receipt.id in await kept(sentinels)

        assert await is_kept()
        async with outliving(sentinels):
            await until(is_kept)
            for _ in range(100):
                assert await is_kept()


async def test_publisher_after_a_pause(sentinels: RedisSentinels) -> None:
    """Who has not published for a while publishes to the new master from the first one on."""
    async with client_of(sentinels.url) as client:
        await client.publish_notification(NOTIFICATION)
        async with outliving(sentinels) as old:
            await idle(sentinels.admin(old))
            receipt = await client.publish_notification(NOTIFICATION)
            assert receipt.id in await kept(sentinels)


async def test_nothing_is_sent_twice(sentinels: RedisSentinels, adding: Adding) -> None:
    """What is added to a list during a failover is there once or, if that failed, perhaps not."""
    async with client_of(sentinels.url) as client:
        async with adding(lambda entry: client.rpush("list", entry)) as additions:
            await additions.more()
            await sentinels.kill_master()
            await sentinels.new_master()
            served_again = await additions.more()
        found = await client.lrange("list", 0, -1)
    assert len(found) == len(set(found))
    assert set(additions.acknowledged[served_again:]) <= set(found)


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
async def test_sentinel_fails(sentinels: RedisSentinels, fault: signal.Signals) -> None:
    """Commands find the master with those sentinels that answer, also when the first hangs."""
    first, second, _ = sentinels.sentinels
    first.signal(fault)
    second.signal(fault)
    async with client_of(sentinels.url) as client:
        assert await client.ping()


async def test_no_sentinel(sentinels: RedisSentinels) -> None:
    """A client starts without any sentinel, says whom it asked, and works once one is back."""
    for sentinel in sentinels.sentinels:
        await sentinel.kill()
    async with client_of(sentinels.url) as client:
        with pytest.raises(exceptions.ConnectionError, match="no sentinel knows a master") as away:
            await client.ping()
        for sentinel in sentinels.sentinels:
            assert f"127.0.0.1:{sentinel.port}: " in str(away.value)
        await sentinels.sentinels[2].launch()
        assert await client.ping()


async def test_hung_sentinels(sentinels: RedisSentinels) -> None:
    """Sentinels that all hang cost a command no more than its time."""
    async with client_of(sentinels.url, IMPATIENT_S) as client:
        for sentinel in sentinels.sentinels:
            sentinel.signal(signal.SIGSTOP)
        with pytest.raises(exceptions.TimeoutError, match=r"within 0\.6 s"):
            await client.ping()


async def test_sentinels_hang_later(sentinels: RedisSentinels) -> None:
    """Sentinels that hang take nothing from a client whose master is well, nor hold up its end."""
    admin = sentinels.admin(sentinels.master)
    without = asyncio.all_tasks()
    async with client_of(sentinels.url) as client:
        assert await client.ping()
        before = asyncio.all_tasks()
        with silent(sentinels):
            await idle(admin)
            assert await client.setex("k", 600, "v")
            # Until the sentinels are asked once more: nobody waits for them, not even the end.
            async with asyncio.timeout(PATIENT_S):
                while asyncio.all_tasks() == before:
                    assert await client.get("k") == "v"
    assert asyncio.all_tasks() == without


async def test_unknown_name(sentinels: RedisSentinels) -> None:
    """A master that no sentinel knows is named."""
    url = sentinels.url.replace(SERVICE_NAME, "stranger")
    async with client_of(url) as client:
        with pytest.raises(exceptions.ConnectionError, match="does not know stranger"):
            await client.ping()


async def test_replica_is_not_taken_for_a_master(start_server: StartServer) -> None:
    """A sentinel may name a server that is none, or none that answers: that is no master."""
    async with (
        start_server() as master,
        start_server(options={"replicaof": f"127.0.0.1 {master.port}"}) as replica,
        start_server(sentinel=True) as sentinel,
        Admin(sentinel.port) as admin,
        client_of(f"redis+sentinel://127.0.0.1:{sentinel.port}/m") as client,
    ):
        await admin.ask("SENTINEL", "MONITOR", "m", "127.0.0.1", replica.port, 1)
        with pytest.raises(
            exceptions.ConnectionError, match=f":{replica.port}, which is a replica"
        ):
            await client.ping()
        await replica.kill()
        with pytest.raises(exceptions.ConnectionError, match=f":{replica.port}. Connect call fail"):
            await client.ping()


async def test_passwords(redis_binary: Path) -> None:
    """Servers and sentinels have passwords of their own; a wrong one is told from a right one."""
    options = {"requirepass": "of-data", "masterauth": "of-data"}
    async with RedisSentinels(
        redis_binary, options=options, sentinel_options={"requirepass": "of-sentinels"}
    ) as sentinels:
        with_data = sentinels.url.replace("://", "://:of-data@")
        async with client_of(f"{with_data}?sentinel_password=of-sentinels") as client:
            assert await client.ping()
            await sentinels.kill_master()
            await sentinels.new_master()
            assert await client.ping()
        for wrong in (
            with_data,
            f"{with_data}?sentinel_password=of-data",
            f"{sentinels.url}?sentinel_password=of-sentinels",
            f"{sentinels.url}?sentinel_password=of-sentinels&password=wrong",
        ):
            async with client_of(wrong) as client:
                with pytest.raises(exceptions.AuthenticationError):
                    await client.ping()


@asynccontextmanager
async def sentinel_set(sentinels: RedisSentinels) -> AsyncIterator[SentinelSet]:
    """With one sentinel, so that a slow one does not have another one asked as well."""
    url = f"redis+sentinel://127.0.0.1:{sentinels.sentinels[0].port}/{SERVICE_NAME}"
    async with aclosing(SentinelSet(RedisAddress.parse(url))) as lookup:
        yield lookup


async def lookups(sentinels: RedisSentinels) -> int:
    """How often the master was asked whether it is one."""
    commands = await sentinels.admin(sentinels.master).info("commandstats")
    return int(commands.get("cmdstat_hello", {"calls": 0})["calls"])


async def test_lookups_are_shared(sentinels: RedisSentinels) -> None:
    """However many ask at once who the master is, it is looked for but once or twice."""
    master = Endpoint("127.0.0.1", sentinels.master.port)
    async with sentinel_set(sentinels) as lookup:
        before = await lookups(sentinels)
        assert lookup.known_master() is None
        likely = await asyncio.gather(*(lookup.likely_master() for _ in range(50)))
        assert set(likely) == {lookup.known_master()} == {master}
        assert await lookups(sentinels) == before + 1
        masters = await asyncio.gather(*(lookup.master() for _ in range(50)))
        assert set(masters) == {lookup.known_master()} == {master}
        assert await lookups(sentinels) <= before + 3


async def test_lookups_are_rare(sentinels: RedisSentinels) -> None:
    """However often somebody asks who the master is, it is looked for but once a second."""
    loop = asyncio.get_running_loop()
    async with sentinel_set(sentinels) as lookup:
        before = await lookups(sentinels)
        began = loop.time()
        await lookup.master()

        async def were_three() -> bool:
            lookup.known_master()
            return await lookups(sentinels) >= before + 3

        await until(were_three)
        assert loop.time() - began >= 2 * CHECK_INTERVAL_S


async def test_pool_is_bounded(sentinels: RedisSentinels) -> None:
    """A client never has more connections to the master than it was allowed."""
    async with client_of(sentinels.url, max_connections=2) as client:
        await asyncio.gather(*(client.ping() for _ in range(20)))
        assert len(await named(sentinels.admin(sentinels.master))) == 2
