"""What an event costs the bridge, beside what no bridge could do without."""

import asyncio
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from confluent_kafka import Producer
from redis.asyncio import Redis

from huleedu_service_libs.child_processes import signal_at_end_of_parent
from huleedu_service_libs.notifications import Notification
from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_server import RedisServer
from huleedu_service_libs.testing.kafka_for_tests import KafkaForTests
from services.websocket_service.bridge.events import TeacherEvent, read_event
from services.websocket_service.implementations.kafka_events import MAX_BATCH_RECORDS
from tests.load.bench.process_tree import cpu_time_s
from tests.load.bridge_events import LAST_CHANNEL, keyed_events
from tests.service_process import REPO, ServiceProcess
from tests.teacher_events import BRIDGE, DEAD_LETTERS, TOPIC

BARE_TOPIC: Final = f"{TOPIC}.bare"
READ: Final = "bare consumer"
PUBLISH: Final = "publish_notifications"
RELAY: Final = "bridge"
# The first repetitions load scripts and fill caches.
WARM_UP: Final = 2
# Only what does not run at all takes so long.
GIVE_UP_AFTER_S: Final = 60


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one process on one partition; medians over the repetitions."""

    work: str
    events_per_s: float
    cpu_us: float
    """CPU time of one event, user and system, in microseconds."""
    times_sum: float
    """The same as a multiple of what bare consumer and publisher use in the same repetition."""


Work = Callable[[int], Awaitable[tuple[float, float]]]
"""Does so many events; the seconds that it took, and those on a CPU."""


async def measure_costs(
    redis: RedisServer, kafka: KafkaForTests, *, events: int, repetitions: int
) -> Sequence[Cost]:
    """Bare consumer, publisher and bridge take turns with `events` each, so many times."""
    for topic in (TOPIC, BARE_TOPIC, DEAD_LETTERS):
        await kafka.create_topic(topic)
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
    async with (
        RedisClient(client_id="load", redis_url=redis.url, timeout_s=60) as client,
        Redis(port=redis.port) as plain,
        _bridge(redis.url, kafka.bootstrap_servers) as bridge_pid,
        _bare_consumer(redis.url, kafka.bootstrap_servers) as consumer_pid,
    ):
        reading = _Reading(producer, BARE_TOPIC, plain, consumer_pid)
        relaying = _Reading(producer, TOPIC, plain, bridge_pid)
        works: Mapping[str, Work] = {
            READ: reading.take,
            PUBLISH: lambda count: _publish(client, count),
            RELAY: relaying.take,
        }
        return await _measure(works, events, repetitions)


async def _measure(works: Mapping[str, Work], events: int, repetitions: int) -> Sequence[Cost]:
    seconds: dict[str, list[float]] = {name: [] for name in works}
    cpu_s: dict[str, list[float]] = {name: [] for name in works}
    for repetition in range(WARM_UP + repetitions):
        for name, work in works.items():
            async with asyncio.timeout(GIVE_UP_AFTER_S):
                took_s, used_s = await work(events)
            if repetition >= WARM_UP:
                seconds[name].append(took_s)
                cpu_s[name].append(used_s)
    sums = [read + publish for read, publish in zip(cpu_s[READ], cpu_s[PUBLISH], strict=True)]
    return [
        Cost(
            name,
            events_per_s=events / statistics.median(seconds[name]),
            cpu_us=statistics.median(cpu_s[name]) / events * 1e6,
            times_sum=statistics.median(
                mine / both for mine, both in zip(cpu_s[name], sums, strict=True)
            ),
        )
        for name in works
    ]


class _Reading:
    """By a process that tells `LAST_CHANNEL` of the last event."""

    def __init__(self, producer: Producer, topic: str, redis: Redis, pid: int) -> None:
        self._producer = producer
        self._topic = topic
        self._redis = redis
        self._pid = pid

    async def take(self, count: int) -> tuple[float, float]:
        records = list(keyed_events(count))
        async with self._redis.pubsub() as told:
            await told.subscribe(LAST_CHANNEL)
            await told.get_message(timeout=GIVE_UP_AFTER_S)
            used_s, began_at = cpu_time_s(self._pid), time.perf_counter()
            for key, value in records:
                self._producer.produce(self._topic, value, key=key, partition=0)
            await asyncio.to_thread(self._producer.flush)
            await told.get_message(timeout=GIVE_UP_AFTER_S)
            return time.perf_counter() - began_at, cpu_time_s(self._pid) - used_s


async def _publish(client: RedisClient, count: int) -> tuple[float, float]:
    notifications = [_notification(value) for _, value in keyed_events(count)]
    used_s, began_at = time.process_time(), time.perf_counter()
    for start in range(0, count, MAX_BATCH_RECORDS):
        await client.publish_notifications(notifications[start : start + MAX_BATCH_RECORDS])
    return time.perf_counter() - began_at, time.process_time() - used_s


def _notification(value: bytes) -> Notification:
    event = read_event(value)
    assert isinstance(event, TeacherEvent)
    return event.notification


@asynccontextmanager
async def _bridge(redis_url: str, servers: str) -> AsyncIterator[int]:
    settings = {"KAFKA_BOOTSTRAP_SERVERS": servers, "LOG_LEVEL": "WARNING"}
    async with ServiceProcess(redis_url, settings=settings, command=BRIDGE) as bridge:
        yield bridge.pid


@asynccontextmanager
async def _bare_consumer(redis_url: str, servers: str) -> AsyncIterator[int]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.load.bare_consumer", servers, BARE_TOPIC, redis_url),
        cwd=REPO,
        preexec_fn=signal_at_end_of_parent(signal.SIGKILL),
    )
    try:
        yield process.pid
    finally:
        process.kill()
        await process.wait()
