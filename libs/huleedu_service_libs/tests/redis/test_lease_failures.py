"""How many connections a user has, while Redis is away, hangs, or has lost its data."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Any

import pytest
from redis import exceptions

from huleedu_service_libs.admission import Admission
from huleedu_service_libs.connection_leases import ConnectionLeases
from huleedu_service_libs.lease_scripts import LeaseScripts
from huleedu_service_libs.redis_channels import UserKeys, user_channel
from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.testing.polling import until
from huleedu_service_libs.testing.redis_cluster import RedisCluster
from huleedu_service_libs.testing.redis_sentinels import RedisSentinels

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from huleedu_service_libs.redis_scripts import ScriptCall
    from huleedu_service_libs.redis_server import RedisServer
    from libs.huleedu_service_libs.tests.redis.conftest import Logged, StartServer

# Three renewals in each second.
DURATION_S = 1.0
IMPATIENT_S = 0.6
GIVE_UP_AFTER_S = 20.0
# Nodes serve their slots also while others are not served.
NOT_WHOLE = {"cluster-require-full-coverage": "no"}


@pytest.fixture
async def leases(client: RedisClient) -> AsyncIterator[ConnectionLeases]:
    async with ConnectionLeases(client, duration_s=DURATION_S) as entered:
        yield entered


async def ids_of(leases: ConnectionLeases, user_id: str) -> set[str]:
    return {lease.connection_id for lease in await leases.of_user(user_id)}


async def has(leases: ConnectionLeases, user_id: str, *connection_ids: str) -> None:
    """Return once these are the user's connections."""

    async def are_all() -> bool:
        try:
            return await ids_of(leases, user_id) == {*connection_ids}
        except exceptions.RedisError:
            return False

    await until(are_all)


async def renewed(leases: ConnectionLeases, user_id: str) -> None:
    """Return once all leases of the user have been renewed."""
    before = (await leases.of_user(user_id))[-1].ends_at

    async def all_end_later() -> bool:
        found = await leases.of_user(user_id)
        return bool(found) and found[0].ends_at > before

    await until(all_end_later)


async def acquires(leases: ConnectionLeases, user_id: str) -> str:
    """Try with ever new connections until one is let in as the user's only one; its id."""
    tried = [""]

    async def is_granted() -> bool:
        tried.append(f"try-{len(tried)}")
        try:
            answer = await leases.acquire(user_id, tried[-1], limit=1)
        except exceptions.RedisError:
            return False
        return answer is Admission.GRANTED

    await until(is_granted)
    return tried[-1]


async def test_redis_restarts_empty(
    server: RedisServer, leases: ConnectionLeases, logged: Logged
) -> None:
    """When Redis comes back without its data, connections count again, those that are left."""
    for connection_id in ("a", "b", "c"):
        await leases.acquire("t", connection_id, limit=3)
    with logged("can't be renewed") as failed:
        await server.kill()
        await asyncio.wait_for(failed, GIVE_UP_AFTER_S)
        leases.release("t", "b")
        with pytest.raises(exceptions.ConnectionError):
            await leases.acquire("t", "d", limit=3)
        leases.release("t", "d")
        await server.launch()
        await has(leases, "t", "a", "c")
    assert await leases.acquire("t", "e", limit=3) is Admission.GRANTED
    assert await leases.acquire("t", "f", limit=3) is Admission.FULL


async def test_leaving_while_redis_is_away(start_server: StartServer) -> None:
    """Who leaves while Redis is away has made room when it comes back with its data."""
    async with (
        start_server(options={"appendonly": "yes", "appendfsync": "always"}) as server,
        RedisClient(client_id="test", redis_url=server.url) as client,
        ConnectionLeases(client, duration_s=1000) as leases,
    ):
        assert await leases.acquire("t", "a", limit=1) is Admission.GRANTED
        await server.kill()
        leases.release("t", "a")
        await asyncio.wait(leases._queued)
        await server.launch()
        assert await ids_of(leases, "t") == {"a"}
        assert await leases.acquire("t", "b", limit=1) is Admission.GRANTED
        assert await ids_of(leases, "t") == {"b"}


async def test_hung_redis(server: RedisServer) -> None:
    """While Redis hangs nobody waits long, and afterwards those count who are still there."""
    async with (
        RedisClient(client_id="test", redis_url=server.url, timeout_s=IMPATIENT_S) as client,
        ConnectionLeases(client, duration_s=DURATION_S, timeout_s=IMPATIENT_S) as leases,
    ):
        await leases.acquire("t", "a", limit=2)
        await leases.acquire("t", "b", limit=2)
        await leases.acquire("u", "a", limit=1)
        server.signal(signal.SIGSTOP)
        leases.release("u", "a")
        async with asyncio.timeout(GIVE_UP_AFTER_S):
            answers = await asyncio.gather(
                *(leases.acquire("u", f"late-{n}", limit=500) for n in range(500)),
                return_exceptions=True,
            )
        assert {type(answer) for answer in answers} == {exceptions.TimeoutError}
        leases.release("t", "b")
        server.signal(signal.SIGCONT)
        entered = await acquires(leases, "u")
        await has(leases, "t", "a")
        for _ in range(4):
            await renewed(leases, "t")
        assert await ids_of(leases, "t") == {"a"}
        assert await ids_of(leases, "u") == {entered}


async def test_leaving_while_being_renewed(server: RedisServer, leases: ConnectionLeases) -> None:
    """Who leaves while a renewal is on its way stays gone, however late that is carried out."""
    await leases.acquire("stays", "a", limit=1)
    for number in range(5):
        await asyncio.gather(
            *(leases.acquire(f"user-{user}", f"{number}-{user}", limit=1) for user in range(50))
        )
        server.signal(signal.SIGSTOP)

        async def are_being_renewed() -> bool:
            return all(held.is_being_renewed for held in leases._held.values())

        await until(are_being_renewed)
        for user in range(50):
            leases.release(f"user-{user}", f"{number}-{user}")
        server.signal(signal.SIGCONT)
        for _ in range(2):
            await renewed(leases, "stays")
        assert await leases.users() == ["stays"]


class DetouringClient(RedisClient):
    """Its renewals arrive only once `arrival` is set, also those that nobody waits for any more."""

    def __init__(self, redis_url: str) -> None:
        super().__init__(client_id="test", redis_url=redis_url)
        self.departed = asyncio.Event()
        self.arrival = asyncio.Event()
        self.arrived = list[asyncio.Task[list[Any]]]()

    async def run_scripts(self, calls: Sequence[ScriptCall]) -> list[Any]:
        if calls[0].script != LeaseScripts.of(DURATION_S).renew.one:
            return await super().run_scripts(calls)
        self.arrived.append(asyncio.create_task(self._arrive(calls)))
        self.departed.set()
        return await asyncio.shield(self.arrived[-1])

    async def _arrive(self, calls: Sequence[ScriptCall]) -> list[Any]:
        await self.arrival.wait()
        return await super().run_scripts(calls)


@pytest.mark.parametrize("is_given_up", [False, True])
async def test_overtaken_renewal(server: RedisServer, logged: Logged, *, is_given_up: bool) -> None:
    """Who leaves stays gone, also where a renewal that was sent before arrives after that."""
    async with DetouringClient(server.url) as client:
        async with ConnectionLeases(client, duration_s=DURATION_S) as leases:
            await leases.acquire("t", "a", limit=1)
            with logged("can't be renewed") as given_up:
                await asyncio.wait_for(client.departed.wait(), GIVE_UP_AFTER_S)
                if is_given_up:
                    await asyncio.wait_for(given_up, GIVE_UP_AFTER_S)
            leases.release("t", "a")
            await asyncio.wait(leases._queued)
            client.arrival.set()
            await asyncio.wait(client.arrived)
            assert await leases.of_user("t") == []
        await asyncio.gather(*client.arrived)


async def test_leaving_a_hung_redis(server: RedisServer) -> None:
    """A service that ends while Redis hangs ends all the same, and its connections lapse."""
    async with RedisClient(client_id="test", redis_url=server.url) as client:
        async with (
            asyncio.timeout(GIVE_UP_AFTER_S),
            ConnectionLeases(client, duration_s=DURATION_S, timeout_s=IMPATIENT_S) as leases,
        ):
            await asyncio.gather(
                *(leases.acquire(f"user-{number}", "a", limit=1) for number in range(1000))
            )
            server.signal(signal.SIGSTOP)
        server.signal(signal.SIGCONT)

        async def nobody_is_left() -> bool:
            return not await leases.users()

        await until(nobody_is_left)


async def test_failover(redis_binary: Path) -> None:
    """When a replica takes the place of the master, connections count as before."""
    async with (
        RedisSentinels(redis_binary) as sentinels,
        RedisClient(client_id="test", redis_url=sentinels.url) as client,
        ConnectionLeases(client, duration_s=DURATION_S) as leases,
    ):
        await leases.acquire("t", "a", limit=2)
        await leases.acquire("t", "b", limit=2)
        await sentinels.kill_master()
        leases.release("t", "a")
        await sentinels.new_master()
        await has(leases, "t", "b")
        await renewed(leases, "t")
        assert await ids_of(leases, "t") == {"b"}


async def test_hung_node_holds_up_its_own_users(redis_binary: Path) -> None:
    """On a Cluster a node that hangs ends nobody's connection on another node."""
    async with (
        RedisCluster(redis_binary, options=NOT_WHOLE) as cluster,
        RedisClient(client_id="test", redis_url=cluster.url, timeout_s=60) as client,
        ConnectionLeases(client, duration_s=DURATION_S, timeout_s=GIVE_UP_AFTER_S) as leases,
    ):
        users = [f"user-{number}" for number in range(900)]
        await asyncio.gather(*(leases.acquire(user, user, limit=1) for user in users))
        hung = await cluster.node_of(0)
        others = [
            user
            for user in users
            if str(client.node_of(UserKeys.of(user_channel(user)).connections))
            != f"127.0.0.1:{hung.port}"
        ]
        assert 0 < len(others) < len(users)
        hung.signal(signal.SIGSTOP)
        for _ in range(4):
            await renewed(leases, others[-1])
        assert await ids_of(leases, others[0]) == {others[0]}
        hung.signal(signal.SIGCONT)

        async def all_are_there() -> bool:
            return await leases.users() == sorted(users)

        await until(all_are_there)
