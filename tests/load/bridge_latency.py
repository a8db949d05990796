"""How long an event takes from its producer to a tab."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from huleedu_service_libs.redis_server import RedisServer
from huleedu_service_libs.testing.kafka_for_tests import KafkaForTests
from services.websocket_service.bridge.events import TeacherEvent, read_event
from tests.functional.v1_tab import Tab, v1_tab
from tests.load.bridge_events import event
from tests.service_process import SERVE, ServiceProcess
from tests.teacher_events import DEAD_LETTERS, TOPIC

TEACHER: Final = "teacher-latency"
EVENTS_PER_S: Final = 50
WARM_UP: Final = 50
GIVE_UP_AFTER_S: Final = 30


@dataclass(frozen=True, slots=True)
class Latency:
    """From the call that produces an event, in milliseconds."""

    to: str
    p50_ms: float
    p99_ms: float
    max_ms: float


async def measure_latency(
    redis: RedisServer, kafka: KafkaForTests, *, partitions: int, seconds: float
) -> Sequence[Latency]:
    """`EVENTS_PER_S` events, evenly, to one teacher; `serve` has the bridge inside.

    Beside the tab there is a consumer of the same events, in this process as well.
    """
    await kafka.create_topic(TOPIC, partitions)
    await kafka.create_topic(DEAD_LETTERS)
    servers = kafka.bootstrap_servers
    settings = {"KAFKA_BOOTSTRAP_SERVERS": servers, "LOG_LEVEL": "WARNING"}
    async with AsyncExitStack() as resources:
        service = await resources.enter_async_context(
            ServiceProcess(redis.url, settings=settings, command=SERVE)
        )
        tab = await resources.enter_async_context(v1_tab(service, TEACHER))
        consumer = AIOKafkaConsumer(TOPIC, bootstrap_servers=servers, auto_offset_reset="earliest")
        await resources.enter_async_context(consumer)
        producer = await resources.enter_async_context(AIOKafkaProducer(bootstrap_servers=servers))
        measurement = _Measurement(partitions, round(EVENTS_PER_S * seconds))
        async with asyncio.timeout(GIVE_UP_AFTER_S + seconds), asyncio.TaskGroup() as tasks:
            tasks.create_task(measurement.produce(producer))
            shown = tasks.create_task(measurement.see(tab))
            read = tasks.create_task(measurement.read(consumer))
        return [_latency("bare consumer", read.result()), _latency("tab", shown.result())]


class _Measurement:
    def __init__(self, partitions: int, events: int) -> None:
        self._partitions = partitions
        self._numbers = range(WARM_UP + events)
        self._produced_at: list[float] = []

    async def produce(self, producer: AIOKafkaProducer) -> None:
        began_at = time.perf_counter()
        for number in self._numbers:
            await asyncio.sleep(began_at + number / EVENTS_PER_S - time.perf_counter())
            value = event(number, TEACHER)
            self._produced_at.append(time.perf_counter())
            await producer.send(TOPIC, value, partition=number % self._partitions)

    async def see(self, tab: Tab) -> list[float]:
        return self._measured([self._since((await tab.numbers(1))[0]) for _ in self._numbers])

    async def read(self, consumer: AIOKafkaConsumer) -> list[float]:
        return self._measured(
            [self._since(_number((await consumer.getone()).value)) for _ in self._numbers]
        )

    def _since(self, number: int) -> float:
        return (time.perf_counter() - self._produced_at[number]) * 1000

    def _measured(self, latencies: list[float]) -> list[float]:
        return sorted(latencies[WARM_UP:])


def _number(value: bytes) -> int:
    read = read_event(value)
    assert isinstance(read, TeacherEvent)
    number: int = read.notification.data["n"]
    return number


def _latency(to: str, ordered: Sequence[float]) -> Latency:
    return Latency(
        to,
        p50_ms=ordered[len(ordered) // 2],
        p99_ms=ordered[len(ordered) * 99 // 100],
        max_ms=ordered[-1],
    )
