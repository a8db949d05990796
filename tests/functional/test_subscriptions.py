"""What the connections cost Redis and each other."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis

from huleedu_service_libs.redis_server import RedisServer
from tests.functional.raw_websocket import Opcode, RawWebSocket, raw_websocket
from tests.service_process import CONTROL_CHANNEL, ServiceProcess, token

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Six that read histories, two for pings and canaries, and the one for subscriptions.
MAX_CONNECTIONS = 9
NOTIFICATION = '{"event":"e","data":"' + "x" * 16_000 + '"}'


async def service_connections(redis: Redis) -> list[str]:
    """The names of all clients that Redis has beside the test's own."""
    own = str(await redis.client_id())
    return [client["name"] for client in await redis.client_list() if client["id"] != own]


async def until_released(service: ServiceProcess, redis: Redis) -> None:
    """Return once Redis and the service know of no subscriber any more."""
    while await redis.pubsub_channels("ws:*"):
        pass
    while True:
        metrics = await service.metrics()
        if not (metrics["websocket_connections"] or metrics["websocket_handshakes"]):
            break
    assert metrics["websocket_users"] == 0
    assert metrics["websocket_subscriptions"] == CONTROL_CHANNEL
    assert metrics["websocket_subscribed_channels"] == CONTROL_CHANNEL


async def test_fifty_users_share_the_connections_to_redis(
    service: ServiceProcess, redis: Redis
) -> None:
    """50 tabs of 50 users: at most 4 connections to Redis, all subscribed, none left behind."""
    users = [f"user-{n}" for n in range(50)]
    tabs = [await service.connect(user) for user in users]
    assert len(await service_connections(redis)) <= 4
    assert sorted(await redis.pubsub_channels("ws:*")) == sorted(f"ws:{u}".encode() for u in users)
    for user, tab in zip(users, tabs, strict=True):
        assert await redis.publish(f"ws:{user}", user) == 1
        assert await tab.recv() == user
    await asyncio.gather(*(tab.close() for tab in tabs))
    await until_released(service, redis)
    assert len(await service_connections(redis)) <= 4


async def test_health_checks_open_no_further_connections(
    service: ServiceProcess, redis: Redis
) -> None:
    """However many ask for Redis' health at once, the process keeps to its connections."""
    answers = await asyncio.gather(*(service.http("/healthz/redis") for _ in range(50)))
    assert {status for status, _, _ in answers} == {200}
    assert len(await service_connections(redis)) <= MAX_CONNECTIONS


async def test_tabs_of_one_user_share_a_channel(service: ServiceProcess, redis: Redis) -> None:
    """Redis sends a notification once, however many tabs it goes to; the last one unsubscribes."""
    tabs = [await service.connect() for _ in range(5)]
    for tab in tabs:
        assert await redis.publish("ws:teacher-1", "{}") == 1
        await tab.close()
    await until_released(service, redis)


async def test_clients_that_drop_out_leave_nothing(service: ServiceProcess, redis: Redis) -> None:
    """Clients that vanish without a word, in mid-handshake too, leave nothing behind."""
    for _ in range(30):
        async with raw_websocket(service.port, token=token()):
            pass
        _, writer = await asyncio.open_connection("127.0.0.1", service.port)
        writer.write(
            b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            b"Authorization: Bearer " + token().encode() + b"\r\n\r\n"
        )
        await writer.drain()
        writer.transport.abort()
    await until_released(service, redis)


@asynccontextmanager
async def stalled_client(service: ServiceProcess, user: str) -> AsyncIterator[RawWebSocket]:
    """A client whose connection is open and that reads nothing from then on."""
    async with raw_websocket(service.port, token=token(user), receive_buffer_bytes=4096) as client:
        assert client.status == 101
        yield client


async def given_up(service: ServiceProcess) -> bool:
    """Whether a slow client has been closed."""
    return (await service.metrics()).get('websocket_connections_closed_total{code="4008"}') == 1


async def test_a_client_that_does_not_read_is_given_up_and_delays_nobody(
    redis_server: RedisServer, redis: Redis
) -> None:
    """While one tab has stopped reading, its user's other tab gets each notification at once."""
    settings = {"WEBSOCKET_OUTBOX_MAX_BYTES": "1000000", "WEBSOCKET_CLOSE_TIMEOUT": "0.5"}
    async with (
        ServiceProcess(redis_server.url, settings=settings) as service,
        service.connect() as neighbour,
        stalled_client(service, "teacher-1") as stalled,
    ):
        while not await given_up(service):
            for _ in range(20):
                assert await redis.publish("ws:teacher-1", NOTIFICATION) == 1
                assert await neighbour.recv() == NOTIFICATION
        await stalled.drained()
        assert await redis.publish("ws:teacher-1", "after") == 1
        assert await neighbour.recv() == "after"


async def test_a_write_that_takes_too_long_ends_the_connection(
    redis_server: RedisServer, redis: Redis
) -> None:
    """A client that stops reading is given up although nothing more is published to it."""
    settings = {"WEBSOCKET_WRITE_TIMEOUT": "0.5", "WEBSOCKET_CLOSE_TIMEOUT": "0.5"}
    async with (
        ServiceProcess(redis_server.url, settings=settings) as service,
        service.connect("neighbour") as neighbour,
        stalled_client(service, "stalled") as stalled,
    ):
        # In one go: one by one, a busy machine may take longer than the timeout.
        burst = redis.pipeline(transaction=False)
        for _ in range(800):
            burst.publish("ws:stalled", NOTIFICATION)
        assert await burst.execute() == [1] * 800
        assert await redis.publish("ws:neighbour", "meanwhile") == 1
        assert await neighbour.recv() == "meanwhile"
        while not await given_up(service):
            pass
        await stalled.drained()
        await redis.publish("ws:neighbour", "after")
        assert await neighbour.recv() == "after"


async def test_a_slow_client_that_reads_on_gets_everything(
    service: ServiceProcess, redis: Redis
) -> None:
    """A client that falls behind and catches up again misses nothing."""
    async with stalled_client(service, "teacher-1") as slow:
        published = [f"{n} {NOTIFICATION}".encode() for n in range(600)]
        for payload in published:
            assert await redis.publish("ws:teacher-1", payload) == 1
        received: list[bytes] = []
        while len(received) < len(published):
            frame = await slow.receive()
            if frame.opcode == Opcode.TEXT:
                received.append(frame.payload)
        assert received == published
