"""How a process learns who has to go, over real Redis servers, whatever becomes of them."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import asynccontextmanager
from datetime import timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from common_core.timestamps import utc_now
from huleedu_service_libs.auth.jwt_validation import JWTClaims
from huleedu_service_libs.connection_control import ConnectionControl, Disconnect
from huleedu_service_libs.redis_channels import hash_slot
from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_server import RedisServer
from huleedu_service_libs.testing.polling import until
from huleedu_service_libs.testing.redis_cluster import RedisCluster
from huleedu_service_libs.token_revocations import TokenRevocations
from services.websocket_service.implementations.backplane import RedisBackplane
from services.websocket_service.implementations.control_listener import ControlListener
from services.websocket_service.protocols import BackplaneUnavailableError
from services.websocket_service.tests.fakes import GIVE_UP_AFTER_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from huleedu_service_libs.revocation_list import Revocation

RETENTION_S = 86_400
TIMEOUT_S = 0.5
DURABLE = {"appendonly": "yes", "appendfsync": "always"}


class Heard:
    """What the callbacks were told."""

    def __init__(self) -> None:
        self.revocations: list[Revocation] = []
        self.disconnects: list[Disconnect] = []
        self.confirmations: list[str] = []
        self.fails = False
        self._more = asyncio.Event()

    def on_revoked(self, revocation: Revocation) -> None:
        if self.fails:
            self.fails = False
            raise ZeroDivisionError
        self.revocations.append(revocation)
        self._more.set()

    def on_disconnect(self, message: Disconnect) -> None:
        self.disconnects.append(message)
        self._more.set()

    def on_confirm(self, user_id: str) -> None:
        self.confirmations.append(user_id)
        self._more.set()

    async def count(self, revocations: int, disconnects: int = 0) -> None:
        """Return once so many were heard."""
        async with asyncio.timeout(GIVE_UP_AFTER_S):
            while len(self.revocations) < revocations or len(self.disconnects) < disconnects:
                self._more.clear()
                await self._more.wait()


def client_of(server: RedisServer | RedisCluster, timeout_s: float = TIMEOUT_S) -> RedisClient:
    return RedisClient(client_id="test", redis_url=server.url, timeout_s=timeout_s)


def revocations_of(client: RedisClient) -> TokenRevocations:
    return TokenRevocations(client, retention_s=RETENTION_S)


def listener_of(
    client: RedisClient, heard: Heard, patience_s: float = GIVE_UP_AFTER_S
) -> ControlListener:
    return ControlListener(
        RedisBackplane(client),
        RedisBackplane(client),
        ConnectionControl(client).channel,
        revocations_of(client),
        on_revoked=heard.on_revoked,
        on_disconnect=heard.on_disconnect,
        on_confirm=heard.on_confirm,
        patience_s=patience_s,
    )


def claims(subject: str = "u", token_id: str | None = None) -> JWTClaims:
    return JWTClaims(
        subject=subject,
        token_id=token_id,
        issued_at=utc_now() - timedelta(minutes=1),
        expires_at=utc_now() + timedelta(hours=1),
        raw=MappingProxyType({}),
    )


async def current(listener: ControlListener) -> None:
    async def is_current() -> bool:
        return listener.is_current

    await until(is_current)


@asynccontextmanager
async def listening(server: RedisServer) -> AsyncIterator[tuple[ControlListener, Heard]]:
    """A process of the service that knows what is revoked."""
    heard = Heard()
    async with client_of(server) as client, listener_of(client, heard) as listener:
        await current(listener)
        yield listener, heard


@pytest.fixture
async def server() -> AsyncIterator[RedisServer]:
    async with RedisServer() as running:
        yield running


@pytest.fixture
async def elsewhere(server: RedisServer) -> AsyncIterator[TokenRevocations]:
    """What an identity service revokes with."""
    async with client_of(server, GIVE_UP_AFTER_S) as client:
        yield revocations_of(client)


async def test_revocation_reaches_every_process(
    server: RedisServer, elsewhere: TokenRevocations
) -> None:
    """What is revoked anywhere is refused by all processes, and their connections hear of it."""
    async with listening(server) as (one, heard_one), listening(server) as (other, heard_other):
        assert not await one.is_revoked(claims("u", "t"))
        made = [await elsewhere.revoke_token("t"), await elsewhere.revoke_user("v")]
        for listener, heard in ((one, heard_one), (other, heard_other)):
            await heard.count(2)
            assert heard.revocations == made
            assert await listener.is_revoked(claims("u", "t"))
            assert await listener.is_revoked(claims("v"))
            assert not await listener.is_revoked(claims("u", "other"))


async def test_known_from_the_start(server: RedisServer, elsewhere: TokenRevocations) -> None:
    """A process that starts later knows what was revoked before."""
    made = await elsewhere.revoke_user("u")
    async with listening(server) as (listener, heard):
        assert await listener.is_revoked(claims("u"))
        assert heard.revocations == [made]


async def test_told_once(server: RedisServer, elsewhere: TokenRevocations) -> None:
    """What is revoked again, or was known before, is no news to the connections."""
    made = await elsewhere.revoke_token("t", expires_at=utc_now() + timedelta(hours=1))
    async with listening(server) as (_, heard):
        await elsewhere.revoke_token("t")
        last = await elsewhere.revoke_token("last")
        await heard.count(2)
        assert heard.revocations == [made, last]


async def test_nobody_is_admitted_before_it_is_known(server: RedisServer) -> None:
    """While Redis is away at the start nobody can tell; once it is there, everybody can."""
    async with client_of(server) as client:
        await revocations_of(client).revoke_token("t")
        await server.kill()
        async with listener_of(client, Heard(), patience_s=0) as listener:
            with pytest.raises(BackplaneUnavailableError):
                await listener.is_revoked(claims())
            await server.launch()
            await current(listener)
            assert not await listener.is_revoked(claims())
        with pytest.raises(BackplaneUnavailableError):
            await listener.is_revoked(claims())


async def test_disconnect(server: RedisServer) -> None:
    """Who is to be disconnected is told to every process, in order."""
    async with listening(server) as (_, one), listening(server) as (_, other):
        async with client_of(server) as client:
            control = ConnectionControl(client)
            await control.disconnect(user_id="u", reconnect=True)
            await control.disconnect(connection_id="c")
        for heard in (one, other):
            await heard.count(0, disconnects=2)
            assert heard.disconnects == [
                Disconnect(user_id="u", reconnect=True),
                Disconnect(connection_id="c"),
            ]


async def test_garbage_on_the_channel(
    server: RedisServer, elsewhere: TokenRevocations, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever anybody publishes there does no harm, and its content stays out of the log."""
    garbage = [b"", b"private", b'{"type":"private"}', b'{"type":"disconnect"}', b"private" * 9999]
    async with listening(server) as (listener, heard), client_of(server) as client:
        for payload in garbage:
            await client.publish(ConnectionControl(client).channel, payload)
        made = await elsewhere.revoke_token("t")
        await heard.count(1)
        assert (heard.revocations, heard.disconnects) == ([made], [])
        assert await listener.is_revoked(claims("u", "t"))
    logged = [f"{record.__dict__}" for record in caplog.records]
    assert len([line for line in logged if "no control message" in line]) == len(garbage)
    assert not [line for line in logged if "private" in line]


async def test_callback_that_fails(
    server: RedisServer, elsewhere: TokenRevocations, caplog: pytest.LogCaptureFixture
) -> None:
    """A defect in what is called ends nothing: it is logged, and all that follows is heard."""
    async with listening(server) as (listener, heard):
        heard.fails = True
        await elsewhere.revoke_token("one")
        made = await elsewhere.revoke_token("two")
        await heard.count(1)
        assert heard.revocations == [made]
        await current(listener)
        assert await listener.is_revoked(claims("u", "one"))
    assert [r.levelname for r in caplog.records if "listener failed" in str(r.msg)] == ["ERROR"]


async def test_lost_connections(server: RedisServer, elsewhere: TokenRevocations) -> None:
    """However often the connection is cut while tokens are revoked, none of them is missed."""
    async with listening(server) as (listener, heard), Redis(port=server.port) as admin:

        async def cut(times: int) -> None:
            for _ in range(times):
                await admin.client_kill_filter(_type="pubsub")
                await current(listener)

        cutting = asyncio.create_task(cut(5))
        made: list[Revocation] = []
        while not cutting.done() or len(made) < 100:
            made.append(await elsewhere.revoke_token(f"t-{len(made)}"))
        await cutting
        await heard.count(len(made))
        assert {*heard.revocations} == {*made}
        assert len(heard.revocations) == len(made)


async def test_killed_redis() -> None:
    """What was revoked as soon as Redis was back, before anybody was listening, is learnt."""
    async with (
        RedisServer(options=DURABLE) as server,
        client_of(server, GIVE_UP_AFTER_S) as client,
    ):
        elsewhere = revocations_of(client)
        async with listening(server) as (listener, heard):
            first = await elsewhere.revoke_user("before")
            await heard.count(1)
            await server.kill()
            await server.launch()
            second = await elsewhere.revoke_user("after")
            await heard.count(2)
            await current(listener)
            assert heard.revocations == [first, second]


async def test_redis_that_has_lost_everything(
    server: RedisServer, elsewhere: TokenRevocations
) -> None:
    """What a process has learnt it keeps where Redis comes back empty, and others get it back."""
    async with listening(server) as (listener, heard), listening(server) as (_, also_heard):
        made = [await elsewhere.revoke_user("u"), await elsewhere.revoke_token("t")]
        await heard.count(2)
        await also_heard.count(2)
        await server.kill()
        await server.launch()
        assert await elsewhere.all() == []
        async with listening(server) as (newcomer, newcomer_heard):
            await newcomer_heard.count(2)
            assert {*newcomer_heard.revocations} == {*made}
            assert await newcomer.is_revoked(claims("u"))
        assert {*await elsewhere.all()} == {*made}
        assert await listener.is_revoked(claims("u"))
        assert len(heard.revocations) == len(also_heard.revocations) == 2


async def test_redis_that_takes_nothing_back(
    server: RedisServer, elsewhere: TokenRevocations, caplog: pytest.LogCaptureFixture
) -> None:
    """Where Redis is full and has lost revocations, all are admitted or refused as before."""
    async with listening(server) as (listener, heard), Redis(port=server.port) as admin:
        made = await elsewhere.revoke_user("u")
        await heard.count(1)
        await admin.flushall()
        await admin.config_set("maxmemory", 1)
        await admin.client_kill_filter(_type="pubsub")

        async def is_refused() -> bool:
            return any("not restored" in str(record.msg) for record in caplog.records)

        await until(is_refused)
        assert await listener.is_revoked(claims("u"))
        assert not await listener.is_revoked(claims("v"))
        await admin.config_set("maxmemory", 0)
        await admin.client_kill_filter(_type="pubsub")

        async def is_restored() -> bool:
            return await elsewhere.all() == [made]

        await until(is_restored)


async def test_hung_redis(server: RedisServer, elsewhere: TokenRevocations) -> None:
    """What is revoked while Redis hangs is learnt when it answers again."""
    async with listening(server) as (listener, heard), client_of(server) as client:
        client.open_subscriptions()

        async def hears() -> bool:
            return client.hears

        async def is_deaf() -> bool:
            return not client.hears

        await until(hears)
        server.signal(signal.SIGSTOP)
        async with asyncio.TaskGroup() as tasks:
            revoking = tasks.create_task(elsewhere.revoke_token("t"))
            await until(is_deaf)
            server.signal(signal.SIGCONT)
        await heard.count(1)
        assert heard.revocations == [revoking.result()]
        await current(listener)
        assert not await listener.is_revoked(claims())


async def test_ends_while_redis_hangs(server: RedisServer) -> None:
    """A process that stops does not wait for a Redis that hangs."""
    async with client_of(server) as client, client_of(server) as hanging:
        await revocations_of(client).revoke_token("t")
        async with asyncio.timeout(GIVE_UP_AFTER_S), listening(server):
            server.signal(signal.SIGSTOP)
            async with listener_of(hanging, Heard(), patience_s=0) as listener:
                with pytest.raises(BackplaneUnavailableError):
                    await listener.is_revoked(claims())


async def test_list_that_cannot_be_read(server: RedisServer) -> None:
    """After a loss nobody is admitted on old knowledge: not until the list was read again."""
    async with RedisServer() as lists:
        heard = Heard()
        async with (
            client_of(server) as client,
            client_of(lists) as list_client,
            ControlListener(
                RedisBackplane(client),
                RedisBackplane(client),
                ConnectionControl(client).channel,
                revocations_of(list_client),
                on_revoked=heard.on_revoked,
                on_disconnect=heard.on_disconnect,
                on_confirm=heard.on_confirm,
            ) as listener,
            Redis(port=server.port) as admin,
        ):
            known = await revocations_of(list_client).revoke_token("known")
            await current(listener)
            await heard.count(1)
            lists.signal(signal.SIGSTOP)
            await admin.client_kill_filter(_type="pubsub")

            async def is_outdated() -> bool:
                return not listener.is_current

            await until(is_outdated)
            async with asyncio.TaskGroup() as tasks:
                waiting = tasks.create_task(listener.is_revoked(claims("u", "unknown")))
                await client.ping()
                assert not waiting.done()
                assert await listener.is_revoked(claims("u", "known"))
                lists.signal(signal.SIGCONT)
            assert not waiting.result()
            assert not await listener.is_revoked(claims("u", "unknown"))
            assert heard.revocations == [known]


async def test_failover_of_a_cluster() -> None:
    """Where the node dies that has the list, its successor has it, and is listened to."""
    async with RedisCluster(replicas_per_master=1) as cluster:
        heard = Heard()
        async with (
            client_of(cluster) as client,
            client_of(cluster) as elsewhere,
            listener_of(client, heard) as listener,
        ):
            await current(listener)
            first = await revocations_of(elsewhere).revoke_user("before")
            await heard.count(1)
            slot = hash_slot(ConnectionControl(client).channel)
            master = await cluster.node_of(slot)
            (replica,) = await cluster.replicas_of(master)
            await cluster.promote(replica)
            await master.kill()
            now = utc_now()

            async def revoked() -> bool:
                try:
                    await revocations_of(elsewhere).revoke_user("after", issued_before=now)
                except RedisError:
                    return False
                return True

            await until(revoked)
            await heard.count(2)
            assert [r.user_id for r in heard.revocations] == ["before", "after"]
            kept = {r.user_id: r for r in await revocations_of(elsewhere).all()}
            assert kept.keys() == {"before", "after"}
            assert kept["before"] == first


REVOKE = """
import asyncio, sys
from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.token_revocations import TokenRevocations

async def main():
    async with RedisClient(client_id="identity_service", redis_url=sys.argv[1]) as client:
        revocations = TokenRevocations(client, retention_s=86_400)
        for number in range(200):
            await revocations.revoke_token(f"{sys.argv[2]}-{number}")

asyncio.run(main())
"""


async def test_other_processes(server: RedisServer) -> None:
    """What several services revoke while a process of this one starts is known to it."""
    services = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", REVOKE, server.url, name)
        for name in ("a", "b")
    ]
    async with client_of(server) as client:

        async def has_begun() -> bool:
            return bool(await revocations_of(client).all())

        await until(has_begun)
        async with listening(server) as (listener, heard):
            assert [await service.wait() for service in services] == [0, 0]
            await heard.count(400)
            for name in ("a", "b"):
                for number in range(200):
                    assert await listener.is_revoked(claims("u", f"{name}-{number}"))
