"""What clients and operators see when the service is told to stop."""

import asyncio
import contextlib
import json
import signal
from contextlib import AsyncExitStack
from functools import partial

import pytest
from redis.asyncio import Redis
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage
from websockets.frames import Frame, Opcode

from huleedu_service_libs.redis_server import RedisServer
from tests.fault.peers import (
    V1,
    Ending,
    RawPeer,
    assert_come_back_later,
    assert_nothing_went_wrong,
    ending,
    raw_peer,
    until,
)
from tests.fault.unread_answers import has_stuck_writes
from tests.service_process import HYPERCORN, SERVE, ServiceProcess, free_port

WAYS = {
    "hypercorn": HYPERCORN,
    "hypercorn in one process": (*HYPERCORN[:-1], "--workers", "0", "--bind"),
    "hypercorn with two workers": (*HYPERCORN[:-1], "--workers", "2", "--bind"),
    "serve": SERVE,
    "serve with two workers": (*SERVE, "--workers", "2"),
}
SIGNALS = {
    "SIGTERM": lambda service: service.signal(signal.SIGTERM),
    "SIGINT": lambda service: service.signal(signal.SIGINT),
    "Ctrl-C": lambda service: service.signal_all(signal.SIGINT),
    "systemd": lambda service: service.signal_all(signal.SIGTERM),
}
# The end waits for a peer that has not answered its close frame. With this, a test that holds
# the end open in that way has time to look around.
PATIENT = {"WEBSOCKET_CLOSE_TIMEOUT": "10"}
HASTY = {"WEBSOCKET_CLOSE_TIMEOUT": "1"}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stop", ["SIGTERM", "Ctrl-C"])
async def test_everybody_is_told(
    redis_server: RedisServer, redis: Redis, way: str, stop: str
) -> None:
    """However it runs and is stopped, every tab gets what was on its way and then a 1012."""
    async with (
        ServiceProcess(redis_server.url, command=WAYS[way], settings=PATIENT) as service,
        raw_peer(service) as holder,
        raw_peer(service) as keep_alive,
        AsyncExitStack() as stack,
    ):
        await holder.open("holder")
        await keep_alive.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await keep_alive.receive()).startswith(b"HTTP/1.1 200")
        tabs = [
            await stack.enter_async_context(
                service.connect(f"teacher-{n}", subprotocols=[V1] if n % 2 else [])
            )
            for n in range(50)
        ]
        for n in range(25):
            await publish_numbers(redis, f"teacher-{n}", 100)
        chats = asyncio.gather(*map(chat, tabs[20:30]))

        SIGNALS[stop](service)
        assert_come_back_later(await holder.ending(), 1012)
        await service.wait_for_status("/readyz", 503)
        assert_come_back_later(await ending_of_a_latecomer(service), 1012)
        # Data that the service does not read before it closes would turn the end into a reset.
        await holder.send(Frame(Opcode.TEXT, b"x" * 1000).serialize(mask=True) * 500)
        await holder.answer()
        assert await holder.receive() == b""

        for end in await asyncio.gather(*map(ending, tabs)):
            assert_come_back_later(end, 1012)
            numbers = received_numbers(end)
            assert numbers == list(range(len(numbers)))
        await chats
        await keep_alive.ended()
        assert await service.wait() == 0
        assert_nothing_went_wrong(service.output())


async def test_what_was_received_is_delivered_first(
    redis_server: RedisServer, redis: Redis
) -> None:
    """Notifications that wait for a slow tab reach it before the service goes."""
    async with (
        ServiceProcess(redis_server.url, settings=PATIENT) as service,
        AsyncExitStack() as stack,
    ):
        tabs = [
            await stack.enter_async_context(raw_peer(service, receive_buffer_bytes=4096))
            for _ in range(4)
        ]
        for n, tab in enumerate(tabs):
            await tab.open(f"teacher-{n}", [V1] if n % 2 else [])
            await publish_numbers(redis, f"teacher-{n}", 100, padding=50_000)

        async def all_received() -> bool:
            return (await service.metrics())["websocket_redis_messages_total"] == 400

        await until(all_received)
        assert (await service.metrics())["websocket_deliveries_total"] < 400
        service.signal(signal.SIGTERM)
        for end in await asyncio.gather(*map(RawPeer.ending, tabs)):
            assert_come_back_later(end, 1012)
            assert received_numbers(end) == list(range(100))


async def test_stuck_clients_do_not_hold_the_end(redis_server: RedisServer, redis: Redis) -> None:
    """Clients that no longer read, or answer nothing, neither delay the end nor the others'."""
    async with (
        ServiceProcess(redis_server.url, settings=HASTY) as service,
        raw_peer(service, receive_buffer_bytes=4096) as stopped_reading,
        raw_peer(service) as silent,
        raw_peer(service, receive_buffer_bytes=4096) as stopped_reading_http,
        service.connect() as neighbour,
    ):
        await stopped_reading.open("stopped-reading", [V1])
        await publish_numbers(redis, "stopped-reading", 100, padding=100_000)
        await silent.open("silent")
        await stopped_reading_http.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 900)
        await until(partial(has_stuck_writes, service, 2))

        service.signal(signal.SIGTERM)
        assert_come_back_later(await ending(neighbour), 1012)
        assert_come_back_later(await silent.ending(), 1012)
        assert await service.wait() == 0
        assert_nothing_went_wrong(service.output())


async def test_stopped_while_redis_hangs(redis_server: RedisServer) -> None:
    """Whoever waits for Redis gets an answer first, in mid-handshake too."""
    async with (
        # Longer than the close timeout: the end has to wait for either.
        ServiceProcess(redis_server.url, settings={"WEBSOCKET_CLOSE_TIMEOUT": "0.5"}) as service,
        service.connect("open") as tab,
        raw_peer(service) as plain,
        raw_peer(service) as v1,
        raw_peer(service) as half,
        raw_peer(service) as nothing_said,
        raw_peer(service) as probe,
    ):
        redis_server.signal(signal.SIGSTOP)
        await plain.send(plain.request("plain"))
        await v1.send(v1.request("v1", [V1]))
        request = half.request("half")
        await half.send(request[: len(request) // 2])
        await probe.send(b"GET /healthz/redis HTTP/1.1\r\nHost: localhost\r\n\r\n")

        async def both_wait_for_redis() -> bool:
            return (await service.metrics())["websocket_connections"] == 3

        await until(both_wait_for_redis)
        service.signal(signal.SIGTERM)
        assert_come_back_later(await ending(tab), 1012)
        for peer in (plain, v1):
            await peer.accepted()
            end = await peer.ending()
            assert end.code in {1012, 1013}
            assert_come_back_later(end, end.code)
        assert (await probe.receive()).startswith(b"HTTP/1.1 503")
        await half.ended()
        await nothing_said.ended()
        assert await service.wait() == 0
        assert_nothing_went_wrong(service.output())


@pytest.mark.parametrize(
    ("way", "stop"),
    [
        ("hypercorn", "SIGINT"),
        ("hypercorn", "SIGTERM"),
        ("hypercorn with two workers", "systemd"),
        ("serve", "Ctrl-C"),
    ],
)
async def test_told_twice(redis_server: RedisServer, way: str, stop: str) -> None:
    """An impatient second Ctrl-C, or a supervisor that signals every process, cuts nobody off."""
    async with (
        ServiceProcess(redis_server.url, command=WAYS[way], settings=PATIENT) as service,
        AsyncExitStack() as stack,
    ):
        peers = [await stack.enter_async_context(raw_peer(service)) for _ in range(10)]
        for n, peer in enumerate(peers):
            await peer.open(f"teacher-{n}")
        await until(partial(is_complete, service, way))
        SIGNALS[stop](service)
        endings = [await peers[0].ending()]
        SIGNALS[stop](service)
        await service.wait_for_status("/readyz", 503)
        endings += [await peer.ending() for peer in peers[1:]]
        for end in endings:
            assert_come_back_later(end, 1012)
        for peer in peers:
            await peer.answer()
        assert await service.wait() == 0
        assert_nothing_went_wrong(service.output())


@pytest.mark.parametrize(
    ("way", "stop"),
    [
        # Not Hypercorn with workers: its parent process can be killed after its own last word.
        ("hypercorn in one process", "SIGTERM"),
        ("serve", "Ctrl-C"),
        ("serve with two workers", "systemd"),
    ],
)
async def test_told_again_and_again(redis_server: RedisServer, way: str, stop: str) -> None:
    """No number of signals, whenever they come, spoils a clean end."""
    async with (
        ServiceProcess(redis_server.url, command=WAYS[way]) as service,
        AsyncExitStack() as stack,
    ):
        tabs = [await stack.enter_async_context(service.connect(f"t-{n}")) for n in range(10)]
        await until(partial(is_complete, service, way))

        async def has_ended() -> bool:
            with contextlib.suppress(ProcessLookupError):
                SIGNALS[stop](service)
            return not service.running

        await until(has_ended)
        for tab in tabs:
            assert_come_back_later(await ending(tab), 1012)
        assert await service.wait() == 0
        assert_nothing_went_wrong(service.output())


@pytest.mark.parametrize(
    ("way", "stop", "moment"),
    [
        ("hypercorn", "SIGTERM", "service started"),
        ("hypercorn", "SIGTERM", "Running on"),
        ("hypercorn in one process", "SIGTERM", "service started"),
        ("serve", "Ctrl-C", "service started"),
        # By then, the other one is still starting.
        ("serve with two workers", "systemd", "service started"),
    ],
)
async def test_stopped_while_it_starts_without_redis(way: str, stop: str, moment: str) -> None:
    """A service that is stopped before it was ever ready ends in good order, too."""
    nobody = f"redis://127.0.0.1:{free_port()}"
    async with ServiceProcess(nobody, command=WAYS[way], ready_status=None) as service:

        async def has_come_so_far() -> bool:
            return moment in service.output()

        await until(has_come_so_far)
        SIGNALS[stop](service)
        assert await service.wait() == 0
        assert_nothing_went_wrong(service.output())


@pytest.mark.parametrize("way", ["hypercorn", "serve with two workers"])
async def test_stopped_in_a_rush(redis_server: RedisServer, way: str) -> None:
    """While clients keep coming, none that was let in is cut off without a close frame."""
    async with ServiceProcess(redis_server.url, command=WAYS[way]) as service:
        opened = asyncio.Semaphore(0)
        ends: list[Ending] = []

        async def come_again_and_again(user: str) -> None:
            while service.running:
                try:
                    async with service.connect(user) as client:
                        opened.release()
                        ends.append(await ending(client))
                except (OSError, InvalidHandshake, InvalidMessage):
                    pass  # before it was let in

        async with asyncio.TaskGroup() as clients:
            for n in range(50):
                clients.create_task(come_again_and_again(f"teacher-{n}"))
            for _ in range(30):
                await opened.acquire()
            service.signal(signal.SIGTERM)
            assert await service.wait() == 0
        assert {end.code for end in ends} == {1012}
        assert len(ends) >= 30
        assert_nothing_went_wrong(service.output())


async def is_complete(service: ServiceProcess, way: str) -> bool:
    """Whether all workers serve; the service is ready as soon as one of them does."""
    return service.output().count("Running on") == (2 if "two workers" in way else 1)


async def publish_numbers(redis: Redis, user: str, count: int, *, padding: int = 0) -> None:
    pipeline = redis.pipeline(transaction=False)
    for n in range(count):
        pipeline.publish(
            f"ws:{user}",
            json.dumps({"event": "number", "data": {"n": n, "padding": "x" * padding}}),
        )
    assert await pipeline.execute() == [1] * count


async def chat(tab: ClientConnection) -> None:
    """Say a lot, so that the service always has something to read."""
    with contextlib.suppress(ConnectionClosed):
        for _ in range(500):
            await tab.send("x" * 1000)


def received_numbers(end: Ending) -> list[int]:
    objects = map(json.loads, end.messages)
    return [message["data"]["n"] for message in objects if message.get("event") == "number"]


async def ending_of_a_latecomer(service: ServiceProcess) -> Ending:
    """Of several workers, one may have gone while it was being asked: ask the one that is left."""
    while True:
        try:
            async with service.connect("latecomer") as client:
                return await ending(client)
        except (OSError, InvalidHandshake, InvalidMessage):
            assert service.running
