"""Clients that come and go at the worst moments leave nothing behind."""

import asyncio
import itertools
import random
import signal
from contextlib import AsyncExitStack
from pathlib import Path

from redis.asyncio import Redis
from websockets.frames import Frame, Opcode

from huleedu_service_libs.redis_server import RedisServer
from services.websocket_service.di import MAX_COMMAND_CONNECTIONS
from tests.fault.peers import V1, RawPeer, assert_nothing_went_wrong, raw_peer, until
from tests.service_process import CONTROL_CHANNEL, ServiceProcess

CONNECTIONS = 500
AT_ONCE = 50
SHARED_USERS = 20
GAUGES = (
    "websocket_connections",
    "websocket_handshakes",
    "websocket_users",
)
SUBSCRIPTION_GAUGES = ("websocket_subscriptions", "websocket_subscribed_channels")


async def test_500_connections_at_random_moments(service: ServiceProcess, redis: Redis) -> None:
    """After any number of clients that dropped out anywhere, the service is as it was before."""
    await assert_delivers(service, redis)
    await until(lambda: is_idle(service, redis))
    files_before = open_files(service)
    limit = asyncio.Semaphore(AT_ONCE)
    over = asyncio.Event()

    async def publish() -> None:
        for n in itertools.takewhile(lambda _: not over.is_set(), itertools.count()):
            await redis.publish(f"ws:shared-{n % SHARED_USERS}", '{"event": "e"}')

    async def come_and_go(n: int) -> None:
        user = f"shared-{n % SHARED_USERS}" if n % 2 else f"own-{n}"
        async with limit, raw_peer(service) as peer:
            await drop_out(peer, user, random.Random(n))

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(publish())
        async with asyncio.TaskGroup() as clients:
            for n in range(CONNECTIONS):
                clients.create_task(come_and_go(n))
        over.set()

    await until(lambda: is_idle(service, redis))

    async def files_are_closed() -> bool:
        # A storm of handshakes fills the pool of connections that read histories.
        return open_files(service) <= files_before + MAX_COMMAND_CONNECTIONS

    await until(files_are_closed)
    await assert_delivers(service, redis)
    assert_nothing_went_wrong(service.output())


async def test_vanishing_while_redis_hangs(
    service: ServiceProcess, redis_server: RedisServer, redis: Redis
) -> None:
    """Clients that gave up before Redis answered for them are forgotten."""
    async with AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(raw_peer(service)) for _ in range(100)]
        redis_server.signal(signal.SIGSTOP)
        for n, peer in enumerate(peers):
            await peer.send(peer.request(f"teacher-{n % 60}"))

        async def all_wait() -> bool:
            return (await service.metrics())["websocket_connections"] == len(peers)

        await until(all_wait)
        for peer in peers:
            peer.reset()
    redis_server.signal(signal.SIGCONT)
    await until(lambda: is_idle(service, redis))
    await assert_delivers(service, redis)
    assert_nothing_went_wrong(service.output())


async def drop_out(peer: RawPeer, user: str, choose: random.Random) -> None:
    """Open a connection so far, and end it so."""
    subprotocols = choose.choice(([], [V1]))
    request = peer.request(user, subprotocols)
    moment = choose.choice(("mid-request", "unanswered", "open", "mid-frame", "closing"))
    if moment == "mid-request":
        await peer.send(request[: choose.randrange(len(request))])
    else:
        await peer.send(request)
    if moment not in {"mid-request", "unanswered"}:
        await peer.accepted()
    if moment == "mid-frame":
        frame = Frame(Opcode.TEXT, b"x" * 200).serialize(mask=True)
        await peer.send(frame[: choose.randrange(1, len(frame))])
    if moment == "closing":
        await peer.send(Frame(Opcode.CLOSE, b"\x03\xe8").serialize(mask=True))
    if choose.random() < 0.5:
        peer.reset()


async def is_idle(service: ServiceProcess, redis: Redis) -> bool:
    metrics = await service.metrics()
    return (
        not any(metrics[gauge] for gauge in GAUGES)
        and all(metrics[gauge] == CONTROL_CHANNEL for gauge in SUBSCRIPTION_GAUGES)
        and not await redis.pubsub_channels("ws:*")
    )


async def assert_delivers(service: ServiceProcess, redis: Redis) -> None:
    async with service.connect() as client:
        assert await redis.publish("ws:teacher-1", "hello") == 1
        assert await client.recv() == "hello"


def open_files(service: ServiceProcess) -> int:
    """File descriptors of all of the service's processes."""
    children = Path(f"/proc/{service.pid}/task/{service.pid}/children").read_text().split()
    folders = [Path(f"/proc/{pid}/fd") for pid in [service.pid, *children]]
    return sum(len(list(folder.iterdir())) for folder in folders)
