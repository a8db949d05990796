"""A process that does not hear any more finds out, though everything seems to work."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import pytest
from redis import exceptions

from huleedu_service_libs.redis_address import RedisAddress
from huleedu_service_libs.redis_channels import user_channel
from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_subscription_canary import CANARY_PREFIX
from huleedu_service_libs.redis_subscriptions import SubscriptionHub
from huleedu_service_libs.testing.polling import until
from huleedu_service_libs.testing.tcp_proxy import TcpProxy, is_message

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from huleedu_service_libs.redis_server import RedisServer
    from huleedu_service_libs.redis_subscription_canary import Publish
    from libs.huleedu_service_libs.tests.redis.conftest import HearAgain, Logged, Next, StartServer

TIMEOUT_S = 0.5


def attentive(url: str, timeout_s: float = TIMEOUT_S) -> RedisClient:
    return RedisClient(client_id="attentive", redis_url=url, timeout_s=timeout_s)


def hub_that(
    publish: Publish, server: RedisServer, *, timeout_s: float = TIMEOUT_S
) -> SubscriptionHub:
    """A hub whose canaries go another way than usual."""
    return SubscriptionHub(
        RedisAddress.parse(server.url),
        client_name="hub",
        publish=publish,
        spublish=publish,
        timeout_s=timeout_s,
    )


async def heard(client: RedisClient | SubscriptionHub) -> None:
    async def hears() -> bool:
        return client.hears

    await until(hears)


async def unheard(client: RedisClient | SubscriptionHub) -> None:
    async def does_not_hear() -> bool:
        return not client.hears

    await until(does_not_hear)


async def found_deaf(client: RedisClient, times: int) -> None:
    async def found() -> bool:
        return client.subscription_statistics().times_deaf >= times

    await until(found)


async def test_a_process_knows_that_it_hears(client: RedisClient) -> None:
    """A process that only waits for notifications proves all the time that it would get them."""
    assert not client.hears
    client.open_subscriptions()
    await heard(client)
    first = client.subscription_statistics()
    assert first.hears
    first_age_s = first.canary_age_s
    assert first_age_s is not None

    async def heard_another() -> bool:
        age_s = client.subscription_statistics().canary_age_s
        # Without another one it would only grow.
        return age_s is not None and age_s < first_age_s

    await until(heard_another)
    assert (first.channels, first.subscriptions, first.messages, first.times_deaf) == (0, 0, 0, 0)


@pytest.mark.parametrize("prefix", ["ws", CANARY_PREFIX, CANARY_PREFIX.rstrip("-"), ""])
async def test_no_user_is_called_like_a_canary(
    client: RedisClient, admin: Redis, prefix: str
) -> None:
    """Whatever users and their prefix are called, none of them has the canary's channel."""
    client.open_subscriptions()
    await heard(client)
    (canary,) = map(str, await admin.pubsub_channels())
    assert CANARY_PREFIX in canary
    mark = user_channel("x", prefix).removeprefix(prefix)[:1]
    assert mark not in canary


async def test_deaf_connection(server: RedisServer, hear: Next, hear_again: HearAgain) -> None:
    """A connection that answers pings but brings no payload is found out and replaced."""
    deaf = False
    async with (
        TcpProxy(server.port, keep=lambda reply: not (deaf and is_message(reply))) as proxy,
        attentive(proxy.url) as client,
        client.subscribe("a", mark_gaps=True) as subscription,
    ):
        await heard(client)
        deaf = True
        assert await client.publish("a", b"lost") == 1
        await unheard(client)
        assert client.subscription_statistics().connected
        await found_deaf(client, 2)
        assert client.subscription_statistics().connections_opened >= 2
        assert not client.hears
        deaf = False
        await heard(client)
        await client.publish("a", b"next")
        assert [type(await hear(subscription)).__name__, await hear(subscription)] == [
            "Gap",
            b"next",
        ]
        deaf_before = client.subscription_statistics().times_deaf
        assert await hear_again(client, "a", subscription) == b"again"
        assert client.subscription_statistics().times_deaf == deaf_before


async def test_deafness_is_logged_once(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """However long a process stays deaf, the log says so once."""
    caplog.set_level("WARNING")
    async with (
        TcpProxy(server.port, keep=lambda reply: not is_message(reply)) as proxy,
        attentive(proxy.url, 0.2) as client,
    ):
        client.open_subscriptions()
        await found_deaf(client, 3)
    assert caplog.text.count("was not heard within 0.2 s") == 1


async def test_publishers_elsewhere(start_server: StartServer, server: RedisServer) -> None:
    """A process that listens to another Redis than publishers use is deaf, though both answer."""
    async with (
        start_server() as other,
        attentive(other.url) as publisher,
        hub_that(publisher.publish, server) as hub,
        attentive(server.url) as near,
        hub.subscribe("a") as subscription,
    ):

        async def found() -> bool:
            return hub.statistics().times_deaf >= 2

        await until(found)
        assert not hub.hears
        assert hub.statistics().canary_age_s is None

        # Whoever publishes here is heard all the same, as far as one can tell.
        async def heard_here() -> bool:
            await near.publish("a", b"here")
            return hub.statistics().messages > 0

        await until(heard_here)
        assert await anext(subscription) == b"here"


async def test_failing_to_publish_is_no_reason_to_reconnect(
    start_server: StartServer, server: RedisServer, hear: Next, client: RedisClient
) -> None:
    """While publishing fails nothing is known: the connection stays, and is not said to hear."""
    failures = 0
    async with start_server() as other, attentive(other.url) as publisher:

        async def publish(channel: str, payload: bytes) -> None:
            nonlocal failures
            try:
                await publisher.publish(channel, payload)
            except exceptions.RedisError:
                failures += 1
                raise

        async with (
            hub_that(publish, server) as hub,
            hub.subscribe("a") as subscription,
        ):
            await other.kill()

            async def failed_often() -> bool:
                return failures >= 5

            await until(failed_often)
            assert not hub.hears
            opened = hub.statistics().connections_opened
            await client.publish("a", b"hello")
            assert await hear(subscription) == b"hello"
            failures = 0
            await until(failed_often)
            assert hub.statistics().connections_opened == opened


async def test_hung_and_back(server: RedisServer) -> None:
    """A process does not hear a Redis that hangs, and hears it as soon as it goes on."""
    async with attentive(server.url) as client:
        client.open_subscriptions()
        await heard(client)
        server.signal(signal.SIGSTOP)
        await unheard(client)
        server.signal(signal.SIGCONT)
        await heard(client)
        assert client.subscription_statistics().times_deaf == 0


async def test_crashed_and_back(server: RedisServer, logged: Logged) -> None:
    """A process knows at once that Redis has crashed, and hears it once it is back."""
    async with attentive(server.url, 10) as client:
        client.open_subscriptions()
        await heard(client)
        with logged("no subscription connection") as lost:
            await server.kill()
            await lost
        # Long before the last canary is too old.
        assert not client.hears
        await server.launch()
        await heard(client)
        assert client.subscription_statistics().times_deaf == 0


async def test_replica(start_server: StartServer, server: RedisServer) -> None:
    """A process that was given a read-only replica hears what is published there."""
    options = {"replicaof": f"127.0.0.1 {server.port}", "repl-diskless-sync-delay": "0"}
    async with start_server(options=options) as replica, attentive(replica.url) as client:
        client.open_subscriptions()
        await heard(client)
        with pytest.raises(exceptions.ReadOnlyError):
            await client.setex("key", 1, "value")
        await heard(client)


async def set_user(admin: Redis, *rules: str) -> None:
    await admin.execute_command("ACL", "SETUSER", "listener", *rules)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("forbidden", ["&open:*", "&* -publish"])
async def test_forbidden_canary(
    server: RedisServer,
    admin: Redis,
    hear: Next,
    logged: Logged,
    forbidden: str,
) -> None:
    """Where an access list allows no canary the log says so, and an answer to pings has to do."""
    rules = ["reset", "on", ">secret", "~*", "+@all", "resetchannels", *forbidden.split()]
    await set_user(admin, *rules)
    with logged(f"should allow {CANARY_PREFIX}*") as warned:
        async with (
            attentive(f"redis://listener:secret@127.0.0.1:{server.port}") as client,
            client.subscribe("open:a") as subscription,
        ):
            async with asyncio.timeout(20):
                await warned
            await heard(client)
            await admin.publish("open:a", b"hello")
            assert await hear(subscription) == b"hello"
            statistics = client.subscription_statistics()
            assert (statistics.canary_age_s, statistics.times_deaf) == (None, 0)
            assert statistics.connections_opened == 1
            server.signal(signal.SIGSTOP)
            await unheard(client)
            server.signal(signal.SIGCONT)
            # Once it is allowed, the next connection is proven again.
            await set_user(admin, "+publish", "allchannels")
            await admin.client_kill_filter(_type="pubsub")

            async def proven() -> bool:
                return client.subscription_statistics().canary_age_s is not None

            await until(proven)


async def test_lost_again_and_again(client: RedisClient, admin: Redis) -> None:
    """A connection that is lost again and again leaves no task and no channel behind."""
    client.open_subscriptions()
    await heard(client)
    tasks = len(asyncio.all_tasks())
    killed = 0

    async def replaced() -> bool:
        return client.subscription_statistics().connections_opened == 1 + killed

    while killed < 7:
        killed += await admin.client_kill_filter(_type="pubsub")
        await until(replaced)
    await heard(client)
    assert len(asyncio.all_tasks()) == tasks
    assert len(await admin.pubsub_channels()) == 1


async def test_stopped_in_the_middle(server: RedisServer) -> None:
    """A client can be stopped while a canary is on its way to a Redis that hangs."""
    publishing = asyncio.Event()
    before = asyncio.all_tasks()
    async with attentive(server.url, 60) as publisher:

        async def publish(channel: str, payload: bytes) -> None:
            server.signal(signal.SIGSTOP)
            publishing.set()
            await publisher.publish(channel, payload)

        async with hub_that(publish, server, timeout_s=60) as hub:
            hub.open()
            async with asyncio.timeout(20):
                await publishing.wait()
    assert asyncio.all_tasks() == before
