"""Replays that are large, slow, or many at once."""

import asyncio
import json
from collections.abc import AsyncIterator
from itertools import count
from typing import Any

import pytest
from redis.asyncio import Redis

from huleedu_service_libs.notification_settings import HistoryLimits
from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_server import RedisServer
from tests.functional.raw_websocket import Opcode, RawWebSocket, raw_websocket
from tests.functional.v1_tab import V1, Tab, publish, v1_tab
from tests.service_process import ServiceProcess, token

pytestmark = pytest.mark.asyncio(loop_scope="module")

SUBPROTOCOL = ("Sec-WebSocket-Protocol", V1)
# A stalled client must be given up for what it does, not for how long it takes on a busy machine.
PATIENT = {"WEBSOCKET_WRITE_TIMEOUT": "100"}


async def objects(client: RawWebSocket) -> AsyncIterator[dict[str, Any]]:
    """What comes, whether in frames of its own or in arrays."""
    while (frame := await client.receive()).opcode != Opcode.CLOSE:
        if frame.opcode == Opcode.TEXT:
            message = json.loads(frame.payload)
            for each in message if isinstance(message, list) else [message]:
                yield each
    raise AssertionError(frame.payload)


async def test_replay_that_is_larger_than_the_queue(redis_server: RedisServer) -> None:
    """600 notifications of 64 KiB, 39 MB where 32 may wait: a slow reader gets all of them."""
    text = "x" * 65_300
    # None is trimmed while it is replayed.
    limits = HistoryLimits(size=700)
    async with (
        ServiceProcess(redis_server.url, settings=PATIENT) as service,
        RedisClient(
            client_id="test", redis_url=redis_server.url, history_limits=limits
        ) as publisher,
    ):
        published = [
            await publisher.publish_user_notification("large", "e", {"n": n, "text": text})
            for n in range(600)
        ]
        assert published == [0] * 600
        cursor = (await publisher.history.kept("large", max_entries=600))[0].id
        async with raw_websocket(
            service.port,
            token=token("large"),
            target=f"/ws?cursor={cursor}",
            headers=[SUBPROTOCOL],
            receive_buffer_bytes=4096,
        ) as client:
            received = objects(client)
            assert (await anext(received))["resumed"] is True
            # It reads nothing while more comes live.
            while (await service.metrics())["websocket_replayed_total"] == 0:
                pass
            await publish(publisher, "large", range(600, 610))
            for n in range(1, 610):
                frame = await anext(received)
                assert frame["data"].get("n") == n
                assert ("text" in frame["data"]) is (n < 600)


@pytest.mark.parametrize("durable", [True, False])
async def test_updates_for_a_client_that_does_not_read(
    redis_server: RedisServer, durable: bool
) -> None:
    """5,000 updates of one thing do not overflow a queue of 50: the newest is the last to come."""
    settings = {**PATIENT, "WEBSOCKET_OUTBOX_MAX_FRAMES": "50"}
    text = "x" * 10_000
    async with (
        ServiceProcess(redis_server.url, settings=settings) as service,
        RedisClient(client_id="test", redis_url=redis_server.url) as publisher,
        raw_websocket(
            service.port, token=token("busy"), headers=[SUBPROTOCOL], receive_buffer_bytes=4096
        ) as client,
    ):
        for n in range(5_000):
            await publisher.publish_user_notification(
                "busy",
                "progress",
                {"n": n, "text": text},
                durable=durable,
                collapse_key="batch-1",
            )
        while (await service.metrics())["websocket_redis_messages_total"] < 5_000:
            pass
        await publish(publisher, "busy", [5_000])
        received = objects(client)
        assert (await anext(received))["type"] == "welcome"
        numbers = [-1]
        while numbers[-1] < 5_000:
            numbers.append((await anext(received))["data"]["n"])
        assert numbers == sorted(set(numbers))
        assert numbers[-2:] == [4_999, 5_000]
        assert len(numbers) < 4_000
        metrics = await service.metrics()
        assert metrics["websocket_connections"] == 1
        assert metrics["websocket_replayed_total"] == 0


async def test_storm_of_resumes(service: ServiceProcess, publisher: RedisClient) -> None:
    """300 tabs resume 199 notifications each at once, while another user gets live ones."""
    users = [f"storm-{n}" for n in range(60)]
    cursors = {}
    for user in users:
        cursors[user], *_ = await publish(publisher, user, range(200))
    before = await service.metrics()
    over = asyncio.Event()

    async def resume(user: str) -> None:
        async with v1_tab(service, user, cursors[user]) as tab:
            assert tab.welcome["resumed"] is True
            assert await tab.numbers(199) == list(range(1, 200))

    async def live_ones(tab: Tab) -> None:
        for n in count():
            await publish(publisher, "bystander", [n])
            assert await tab.numbers(1) == [n]
            if over.is_set():
                return

    async with v1_tab(service, "bystander") as bystander, asyncio.TaskGroup() as tasks:
        tasks.create_task(live_ones(bystander))
        await asyncio.gather(*(resume(user) for user in users for _ in range(5)))
        over.set()
    after = await service.metrics()
    resumed = 'websocket_resumes_total{result="resumed"}'
    assert after[resumed] - before.get(resumed, 0) == 300
    replayed = "websocket_replayed_total"
    assert after[replayed] - before[replayed] == 300 * 199


async def test_history_is_not_read_for_raw_payloads(service: ServiceProcess, redis: Redis) -> None:
    """A user who has never had a durable notification costs one look at the history per tab."""
    async with service.connect("raw-only") as tab:
        await redis.config_resetstat()
        for n in range(1_000):
            await redis.publish("ws:raw-only", json.dumps({"event": "e", "data": {"n": n}}))
        for n in range(1_000):
            assert json.loads(await tab.recv())["data"]["n"] == n
        commands = await redis.info("commandstats")
        assert not [name for name in commands if "eval" in name or "xrange" in name]
