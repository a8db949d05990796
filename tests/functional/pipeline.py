"""Everything between a teacher's command and the tab that tells how it went, as processes."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from huleedu_service_libs.redis_server import RedisServer
from huleedu_service_libs.testing.kafka_broker import KafkaBroker
from tests.fault.durability import DURABLE
from tests.functional.collector import Collector, collector
from tests.functional.pipeline_backend import COMPLETED, STARTED
from tests.gateway_process import COMMANDS_TOPIC, GatewayProcess
from tests.http_process import REPO, START_TIMEOUT_S, STOP_TIMEOUT_S
from tests.service_process import SERVE, ServiceProcess
from tests.teacher_events import bridge_process, kafka

# Of all tests together: a command that is followed through Kafka needs this at most.
RATE_LIMIT = {"API_GATEWAY_RATE_LIMIT_REQUESTS": "10000"}


@dataclass(frozen=True, slots=True)
class Pipeline:
    """All of it but the bridge, which tests start themselves to stop it in the middle."""

    broker: KafkaBroker
    redis: RedisServer
    gateway: GatewayProcess
    websockets: ServiceProcess
    collector: Collector

    def bridge(self) -> ServiceProcess:
        """A bridge for `async with`."""
        return bridge_process(self.redis.url, self.broker, settings=self.collector.settings)

    async def command(self, user: str, *, headers: Mapping[str, str] | None = None) -> str:
        """Have a new batch of the user processed; its id."""
        batch_id = f"batch-{uuid4()}"
        status, _, body = await self.gateway.request_pipeline(batch_id, user=user, headers=headers)
        assert status == 202, body
        assert json.loads(body)["batch_id"] == batch_id
        return batch_id


@asynccontextmanager
async def pipeline() -> AsyncIterator[Pipeline]:
    """Kafka, a Redis that persists, the gateway, a backend, the WebSocket service, a collector."""
    async with (
        collector() as spans,
        kafka() as broker,
        RedisServer(options=DURABLE) as redis,
        GatewayProcess(
            kafka=broker.bootstrap_servers,
            redis_url=redis.url,
            settings={**RATE_LIMIT, **spans.settings},
        ) as gateway,
        _backend(broker, redis, spans.settings),
        ServiceProcess(redis.url, command=SERVE, settings=spans.settings) as websockets,
    ):
        yield Pipeline(broker, redis, gateway, websockets, spans)


@asynccontextmanager
async def _backend(
    broker: KafkaBroker, redis: RedisServer, settings: Mapping[str, str]
) -> AsyncIterator[None]:
    await broker.create_topic(COMMANDS_TOPIC)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.functional.pipeline_backend", broker.bootstrap_servers, redis.url),
        cwd=REPO,
        env={**os.environ, **settings},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            assert await process.stdout.readline() == b"ready\n"
        yield
        assert process.returncode is None, "the backend has ended"
        process.terminate()
        async with asyncio.timeout(STOP_TIMEOUT_S):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def batch_and_type(frame: dict[str, Any]) -> tuple[str, str]:
    """What a notification is about."""
    return frame["data"]["batch_id"], frame["event"]


def shown(*batches: str) -> list[tuple[str, str]]:
    """What a tab shows of batches that were processed one after the other."""
    return [(batch, event) for batch in batches for event in (STARTED, COMPLETED)]
