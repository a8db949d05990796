"""Subscribers while Redis is away, hung, refuses them, or the client is stopped."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from redis import exceptions

from huleedu_service_libs.redis_client import RedisClient

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from huleedu_service_libs.redis_server import RedisServer
    from libs.huleedu_service_libs.tests.redis.conftest import (
        Channels,
        HearAgain,
        Logged,
        Next,
        StartServer,
        Until,
    )

TIMEOUT_S = 0.6
PASSWORD = "corr/ect:h@rse"


def impatient(url: str, timeout_s: float = TIMEOUT_S) -> RedisClient:
    return RedisClient(client_id="impatient", redis_url=url, timeout_s=timeout_s)


async def test_killed_connection(client: RedisClient, admin: Redis, hear_again: HearAgain) -> None:
    """When Redis drops the subscription connection, subscribers hear again by themselves."""
    async with client.subscribe("a") as a, client.subscribe("b") as b:
        assert await admin.client_kill_filter(_type="pubsub") == 1
        assert await hear_again(client, "a", a) == b"again"
        assert await hear_again(client, "b", b) == b"again"
        assert client.subscription_statistics().connections_opened == 2


async def test_crash_and_restart(
    server: RedisServer, client: RedisClient, hear_again: HearAgain
) -> None:
    """Subscribers hear again after Redis crashed and came back."""
    async with client.subscribe("a") as subscription:
        await server.kill()
        with pytest.raises(exceptions.ConnectionError):
            await client.publish("a", b"lost")
        await server.launch()
        assert await hear_again(client, "a", subscription) == b"again"


async def test_redis_away_at_start(
    server: RedisServer, hear_again: HearAgain, until: Until
) -> None:
    """A client starts without Redis, says that it is away, and works once it is there."""
    await server.kill()
    async with impatient(server.url) as client:
        with pytest.raises(exceptions.ConnectionError):
            await client.ping()
        with pytest.raises(exceptions.TimeoutError, match="Connect call failed"):
            await client.subscribe("a").__aenter__()
        assert client.subscription_statistics().channels == 0
        await server.launch()

        async def subscribed() -> bool:
            try:
                async with client.subscribe("a") as subscription:
                    return await hear_again(client, "a", subscription) == b"again"
            except exceptions.TimeoutError:
                return False

        await until(subscribed)


async def test_subscriber_waits_for_redis(server: RedisServer, hear: Next) -> None:
    """A subscriber that arrives while Redis restarts is served as soon as it is back."""
    await server.kill()
    async with impatient(server.url, 10) as client, AsyncExitStack() as stack:
        entering = asyncio.create_task(stack.enter_async_context(client.subscribe("a")))
        with pytest.raises(exceptions.ConnectionError):
            await client.ping()
        await server.launch()
        subscription = await entering
        await client.publish("a", b"hello")
        assert await hear(subscription) == b"hello"


async def test_hung_redis(server: RedisServer, logged: Logged, hear_again: HearAgain) -> None:
    """A Redis that hangs is noticed in bounded time; when it goes on, so do its subscribers."""
    loop = asyncio.get_running_loop()
    async with impatient(server.url) as client, client.subscribe("a") as subscription:
        with logged("did not answer a ping") as noticed:
            stopped_at = loop.time()
            server.signal(signal.SIGSTOP)
            with pytest.raises(exceptions.TimeoutError, match="did not acknowledge"):
                await client.subscribe("b").__aenter__()
            assert TIMEOUT_S <= loop.time() - stopped_at < 2 * TIMEOUT_S
            async with asyncio.timeout(10 * TIMEOUT_S):
                assert await noticed - stopped_at < 2 * TIMEOUT_S
        # A connection to a hung Redis opens, but nothing answers on it.
        with pytest.raises(exceptions.TimeoutError):
            await client.subscribe("b").__aenter__()
        assert not client.subscription_statistics().connected
        server.signal(signal.SIGCONT)
        async with impatient(server.url, 10) as publisher:
            assert await hear_again(publisher, "a", subscription) == b"again"


async def test_a_process_that_was_held_up_blames_nobody(server: RedisServer, hear: Next) -> None:
    """After the event loop itself stood still, a healthy connection is not replaced."""
    loop = asyncio.get_running_loop()
    async with impatient(server.url, 0.2) as client, client.subscribe("a") as subscription:
        for _ in range(3):
            held_up_until = loop.time() + 0.3
            while loop.time() < held_up_until:
                pass
            await client.publish("a", b"on time")
            assert await hear(subscription) == b"on time"
        assert client.subscription_statistics().connections_opened == 1


async def test_stop_ends_waiting_subscribers(server: RedisServer) -> None:
    """Stopping the client ends subscribers that listen and subscribers that still wait, at once."""
    client = impatient(server.url, 60)
    await client.start()
    entered = asyncio.Event()

    async def listen(channel: str) -> None:
        async with client.subscribe(channel) as subscription:
            entered.set()
            async for _ in subscription:
                pass

    listening = asyncio.create_task(listen("a"))
    await entered.wait()
    server.signal(signal.SIGSTOP)
    waiting = asyncio.create_task(listen("b"))
    pinging = asyncio.create_task(client.ping())
    await asyncio.sleep(0)  # all three are under way
    async with asyncio.timeout(10):
        await client.stop()
        ended = await asyncio.gather(listening, waiting, pinging, return_exceptions=True)
    assert [type(error) for error in ended] == [exceptions.ConnectionError] * 3
    assert "stopped" in str(ended[0])
    await client.stop()  # a second call changes nothing


async def test_restarted_client(client: RedisClient) -> None:
    """A client that was stopped can be started again."""
    for _ in range(2):
        await client.stop()
        await client.start()
        await client.start()  # a second call changes nothing
        async with client.subscribe("a") as subscription:
            await client.publish("a", b"hello")
            assert await anext(subscription) == b"hello"


async def test_not_started(server: RedisServer) -> None:
    """Using a client before start() or after stop() says what to do instead of hanging."""
    client = impatient(server.url)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="not started: call start"):
            await client.ping()
        with pytest.raises(RuntimeError, match="not started: call start"):
            client.subscribe("a")
        with pytest.raises(RuntimeError, match="not started: call start"):
            client.subscription_statistics()
        with pytest.raises(RuntimeError, match="not started: call start"):
            await client.create_transaction_pipeline()
        await client.start()
        prepared = client.subscribe("a")
        await client.stop()
    with pytest.raises(RuntimeError, match="not open"):
        await prepared.__aenter__()


async def test_password(start_server: StartServer, hear: Next) -> None:
    """A Redis with a password serves who knows it, special characters included."""
    async with start_server(options={"requirepass": PASSWORD}) as server:
        url = f"redis://:{quote(PASSWORD, safe='')}@127.0.0.1:{server.port}"
        async with impatient(url) as client, client.subscribe("a") as subscription:
            await client.publish("a", b"hello")
            assert await hear(subscription) == b"hello"


@pytest.mark.parametrize(
    ("credentials", "reason"),
    [("", "NOAUTH"), (":wr0ng-secret@", "WRONGPASS"), ("nobody:wr0ng-secret@", "WRONGPASS")],
)
async def test_wrong_password(
    start_server: StartServer,
    caplog: pytest.LogCaptureFixture,
    credentials: str,
    reason: str,
) -> None:
    """A wrong password is an error that says so, and it stands in no log and no message."""
    caplog.set_level("DEBUG")
    async with (
        start_server(options={"requirepass": PASSWORD}) as server,
        impatient(f"redis://{credentials}127.0.0.1:{server.port}", 0.3) as client,
    ):
        with pytest.raises(exceptions.AuthenticationError) as refused:
            await client.ping()
        with pytest.raises(exceptions.TimeoutError, match=reason) as unheard:
            await client.subscribe("a").__aenter__()
    assert reason in caplog.text
    written = f"{caplog.text} {refused.value!r} {unheard.value!r}"
    assert PASSWORD not in written
    assert "wr0ng-secret" not in written


async def test_a_redis_that_quotes_the_password(
    start_server: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Even where Redis does not know AUTH and quotes its arguments, the log has no password."""
    async with (
        start_server(options={"rename-command": 'AUTH ""'}) as server,
        impatient(f"redis://:wr0ng-secret@127.0.0.1:{server.port}", 0.3) as client,
    ):
        with pytest.raises(exceptions.TimeoutError, match="unknown command") as unheard:
            await client.subscribe("a").__aenter__()
    assert "unknown command" in caplog.text
    assert "wr0ng-secret" not in f"{caplog.text} {unheard.value!r}"


def test_malformed_url_is_not_quoted() -> None:
    """A URL that can't be read is refused at once, without quoting the password in it."""
    for url in ("redis://:wr0ng/secret@redis:6379", "http://:wr0ng@redis"):
        with pytest.raises(ValueError, match="not a Redis URL") as refused:
            RedisClient(client_id="test", redis_url=url)
        assert "wr0ng" not in str(refused.value)


@pytest.fixture
async def restricted_url(server: RedisServer, admin: Redis) -> str:
    """A user who may use the channels `open:*` only."""
    await admin.acl_setuser(
        "teacher",
        enabled=True,
        passwords=["+secret"],
        keys=["*"],
        categories=["+@all"],
        reset_channels=True,
        channels=["open:*"],
    )
    return f"redis://teacher:secret@127.0.0.1:{server.port}"


async def test_forbidden_channel(
    restricted_url: str, channels: Channels, until: Until, hear: Next
) -> None:
    """Who subscribes a forbidden channel is told so; the others of the same moment are served."""
    async with impatient(restricted_url, 10) as client, AsyncExitStack() as stack:
        names = ["open:1", "open:2", "closed:1", "open:3", "closed:2", "open:4"]
        outcomes = await asyncio.gather(
            *(stack.enter_async_context(client.subscribe(name)) for name in names),
            return_exceptions=True,
        )
        for name, outcome in zip(names, outcomes, strict=True):
            if name.startswith("closed"):
                assert isinstance(outcome, exceptions.NoPermissionError)
                continue
            assert not isinstance(outcome, BaseException)
            assert await client.publish(name, name) == 1
            assert await hear(outcome) == name.encode()
        assert client.subscription_statistics().channels == 4
        assert client.subscription_statistics().connections_opened == 1
        with pytest.raises(exceptions.NoPermissionError):
            await client.publish("closed:1", b"x")

        async def only_open() -> bool:
            return await channels() == [b"open:%d" % i for i in (1, 2, 3, 4)]

        await until(only_open)


async def test_permission_withdrawn(
    restricted_url: str, admin: Redis, hear: Next, hear_again: HearAgain
) -> None:
    """When a permission is withdrawn, its subscribers are told and the others go on."""
    async with (
        impatient(restricted_url, 10) as client,
        client.subscribe("open:a") as withdrawn,
        client.subscribe("open:b") as kept,
    ):
        await admin.acl_setuser("teacher", enabled=True, reset_channels=True, channels=["open:b"])
        with pytest.raises(exceptions.NoPermissionError):
            await hear(withdrawn)
        assert await hear_again(client, "open:b", kept) == b"again"
        # Allowed again, it can be subscribed again, though the first one has not left yet.
        await admin.acl_setuser("teacher", enabled=True, channels=["open:a"])
        async with client.subscribe("open:a") as again:
            assert await hear_again(client, "open:a", again) == b"again"


async def test_no_connection_left_in_redis(server: RedisServer, admin: Redis, hear: Next) -> None:
    """A Redis that is full says so, and the subscriber gets its turn when there is room."""
    async with impatient(server.url) as client:
        await admin.config_set("maxclients", 1)
        with pytest.raises(exceptions.TimeoutError, match="max number of clients"):
            await client.subscribe("a").__aenter__()
        await admin.config_set("maxclients", 100)
        async with client.subscribe("a") as subscription:
            await admin.publish("a", b"hello")
            assert await hear(subscription) == b"hello"


async def test_not_redis() -> None:
    """A server that speaks something else is no Redis, and the subscriber is told so."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1") as web:
        port = web.sockets[0].getsockname()[1]
        async with impatient(f"redis://127.0.0.1:{port}", 0.3) as client:
            with pytest.raises(exceptions.TimeoutError, match="not a Redis protocol reply"):
                await client.subscribe("a").__aenter__()
