"""Peers that are there and take nothing, or say nothing, or ask too much."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack

import pytest
from redis.asyncio import Redis
from websockets.asyncio.client import ClientConnection
from websockets.frames import Frame, Opcode

from huleedu_service_libs.redis_server import RedisServer
from tests.fault.peers import V1, RawPeer, assert_nothing_went_wrong, raw_peer, until
from tests.service_process import HYPERCORN, SERVE, ServiceProcess, receive_all

CLOSED_4008 = 'websocket_connections_closed_total{code="4008"}'
WAITING = "websocket_waiting_bytes"
BUFFER_BYTES = 4096
PAYLOAD = json.dumps({"event": "e", "data": "x" * 50_000})
QUICK = {"WEBSOCKET_WRITE_TIMEOUT": "1", "WEBSOCKET_CLOSE_TIMEOUT": "0.5"}


async def publish(redis: Redis, user: str, count: int) -> None:
    pipeline = redis.pipeline(transaction=False)
    for _ in range(count):
        pipeline.publish(f"ws:{user}", PAYLOAD)
    assert await pipeline.execute() == [1] * count


async def closed_for_slowness(service: ServiceProcess, count: int) -> None:
    """Return once so many connections were closed with 4008, and nothing waits for them."""

    async def are_closed() -> bool:
        metrics = await service.metrics()
        return metrics.get(CLOSED_4008) == count and metrics[WAITING] == 0

    await until(are_closed)


@contextlib.asynccontextmanager
async def stuck_peers(service: ServiceProcess, redis: Redis, count: int) -> AsyncIterator[None]:
    """So many peers that have stopped reading, with 5 MB on the way to each."""
    async with AsyncExitStack() as stack:
        for n in range(count):
            peer = await stack.enter_async_context(
                raw_peer(service, receive_buffer_bytes=BUFFER_BYTES)
            )
            await peer.open(f"stuck-{n}", [V1] if n % 2 else [])
            await publish(redis, f"stuck-{n}", 100)
        yield


@pytest.mark.parametrize("command", [HYPERCORN, SERVE], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("tuning", ["true", "false"], ids=["tuned", "untuned"])
async def test_peer_that_stops_reading(
    redis_server: RedisServer, redis: Redis, tuning: str, command: Sequence[str]
) -> None:
    """A peer that reads no more is closed with 4008, and what waited for it is let go."""
    settings = {**QUICK, "HYPERCORN_TUNING": tuning}
    async with (
        ServiceProcess(redis_server.url, command=command, settings=settings) as service,
        service.connect("healthy") as healthy,
        stuck_peers(service, redis, 2),
    ):
        assert (await service.metrics())[WAITING] > 0
        await closed_for_slowness(service, 2)
        await redis.publish("ws:healthy", "still here")
        assert await healthy.recv() == "still here"
        assert (await service.metrics())["websocket_connections"] == 1


async def trickle(peer: RawPeer) -> None:
    """Read a little now and then, for as long as there is anything."""
    with contextlib.suppress(ConnectionError):
        while await peer.receive():  # noqa: ASYNC110 - this is its pace
            await asyncio.sleep(0.05)


async def test_peer_that_trickles(redis_server: RedisServer, redis: Redis) -> None:
    """A peer that reads, but never catches up, is closed once a frame has waited too long."""
    settings = {**QUICK, "WEBSOCKET_WRITE_TIMEOUT": "60", "WEBSOCKET_OUTBOX_MAX_AGE": "1"}
    async with (
        ServiceProcess(redis_server.url, settings=settings) as service,
        raw_peer(service, receive_buffer_bytes=BUFFER_BYTES) as peer,
    ):
        await peer.open("slow", [V1])
        trickling = asyncio.create_task(trickle(peer))
        await publish(redis, "slow", 600)
        await closed_for_slowness(service, 1)
        await trickling


@pytest.mark.parametrize("count", [1, 200])
async def test_end_does_not_wait_for_each_of_them(
    redis_server: RedisServer, redis: Redis, count: int
) -> None:
    """However many peers have stopped reading, the service ends within its timeouts."""
    settings = {"WEBSOCKET_CLOSE_TIMEOUT": "1", "WEBSOCKET_OUTBOXES_MAX_BYTES": "2000000000"}
    async with (
        ServiceProcess(redis_server.url, settings=settings) as service,
        stuck_peers(service, redis, count),
    ):
        # What was to be read, what was queued, the close frame, and the rest of HTTP: the process
        # has 15 s, and each peer alone would take two.
        assert await service.terminate() == 0
        assert_nothing_went_wrong(service.output())


async def answer_pings(client: ClientConnection, ended: asyncio.Event) -> None:
    """Read until told, as every tab does."""
    reading = asyncio.create_task(client.recv())
    await ended.wait()
    assert not reading.done()
    reading.cancel()


async def test_dead_peers(redis_server: RedisServer) -> None:
    """Those that answer no ping are closed within the idle timeout; those that do stay."""
    settings = {
        "WEBSOCKET_PING_INTERVAL": "0.2",
        "WEBSOCKET_IDLE_TIMEOUT": "1",
        "WEBSOCKET_CLOSE_TIMEOUT": "0.2",
    }
    async with (
        ServiceProcess(redis_server.url, settings=settings) as service,
        AsyncExitStack() as stack,
    ):
        ended = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            for n in range(10):
                client = await stack.enter_async_context(service.connect(f"alive-{n}"))
                tasks.create_task(answer_pings(client, ended))
                dead = await stack.enter_async_context(raw_peer(service))
                await dead.open(f"dead-{n}")
            await closed_for_slowness(service, 10)
            assert (await service.metrics())["websocket_connections"] == 10
            ended.set()


FLOODS = {
    "pings": Frame(Opcode.PING, b"x" * 125).serialize(mask=True),
    "pongs": Frame(Opcode.PONG, b"").serialize(mask=True),
    "empty texts": Frame(Opcode.TEXT, b"").serialize(mask=True),
    "v1 pings": Frame(Opcode.TEXT, b'{"type":"ping","nonce":1}').serialize(mask=True),
    "nonsense": Frame(Opcode.TEXT, b"nonsense").serialize(mask=True),
}
FRAGMENTS = {"empty fragments": b"", "one-byte fragments": b"x"}


@pytest.mark.parametrize("kind", [*FLOODS, *FRAGMENTS])
async def test_flood(redis_server: RedisServer, redis: Redis, kind: str) -> None:
    """Whoever floods the service, with whatever, is closed with 4009; others miss nothing."""
    async with (
        ServiceProcess(redis_server.url, command=SERVE) as service,
        service.connect("healthy") as healthy,
        AsyncExitStack() as stack,
    ):
        floods = [
            await stack.enter_async_context(raw_peer(service, receive_buffer_bytes=BUFFER_BYTES))
            for _ in range(5)
        ]
        async with asyncio.TaskGroup() as tasks:
            for n, peer in enumerate(floods):
                await peer.open(f"flood-{n}", [V1])
                tasks.create_task(flood(peer, kind))
            for n in range(500):
                assert await redis.publish("ws:healthy", str(n)) == 1
            assert await receive_all(healthy, 500) == [str(n) for n in range(500)]
        for peer in floods:
            assert (await peer.ending()).code in {4009, 1006}
        assert (await service.metrics())['websocket_connections_closed_total{code="4009"}'] == len(
            floods
        )
        assert_nothing_went_wrong(service.output())


async def flood(peer: RawPeer, kind: str) -> None:
    """Send frame upon frame, and read nothing."""
    if kind in FLOODS:
        data = FLOODS[kind] * 5000
    else:
        more = Frame(Opcode.CONT, FRAGMENTS[kind], fin=False).serialize(mask=True)
        data = Frame(Opcode.TEXT, b"", fin=False).serialize(mask=True) + more * 5000
    # Of one that has been cut off meanwhile.
    with contextlib.suppress(ConnectionError):
        await peer.send(data)
