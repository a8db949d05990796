"""What backend services say over Kafka, for the tests of the bridge."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from aiokafka import AIOKafkaProducer
from websockets.asyncio.client import ClientConnection

from common_core.events.envelope import EventEnvelope
from common_core.events.notification_events import TeacherNotificationRequestedV1
from common_core.websocket_enums import NotificationPriority, WebSocketEventCategory
from huleedu_service_libs.testing.kafka_broker import KafkaBroker
from huleedu_service_libs.testing.polling import until
from tests.functional.v1_tab import Tab, v1_tab
from tests.service_process import ServiceProcess

TOPIC = "huleedu.notification.teacher.requested.v1"
DEAD_LETTERS = f"{TOPIC}.dead-letter"
SHOWN_WITHIN_S = 40
BRIDGE = (
    str(Path(sys.executable).with_name("websocket-service")),
    *("bridge", "--host", "127.0.0.1", "--port", "{port}"),
)


def teacher_event(
    number: int,
    *,
    teacher: str = "teacher-1",
    event_id: UUID | None = None,
    metadata: dict[str, Any] | None = None,
) -> bytes:
    """An event whose notification has `n` in its data."""
    envelope = EventEnvelope[TeacherNotificationRequestedV1](
        event_id=event_id or uuid4(),
        event_type="teacher.notification.requested",
        source_service="result_service",
        data=TeacherNotificationRequestedV1(
            teacher_id=teacher,
            notification_type="batch_results_ready",
            category=WebSocketEventCategory.PROCESSING_RESULTS,
            priority=NotificationPriority.HIGH,
            payload={"n": number},
            correlation_id="correlation-1",
        ),
        metadata=metadata,
    )
    return envelope.model_dump_json().encode()


class EventProducer:
    """Appends records to the topic of events, one after the other."""

    def __init__(self, producer: AIOKafkaProducer) -> None:
        self._producer = producer

    async def send(self, value: bytes | None, *, partition: int = 0, key: bytes = b"k") -> None:
        """Return once it is there."""
        await self._producer.send_and_wait(TOPIC, value, key=key, partition=partition)

    async def send_numbers(self, numbers: range, *, partition: int = 0) -> None:
        """An event for each."""
        for number in numbers:
            await self.send(teacher_event(number), partition=partition)


@asynccontextmanager
async def event_producer(broker: KafkaBroker) -> AsyncIterator[EventProducer]:
    """A producer for the block."""
    async with AIOKafkaProducer(
        bootstrap_servers=broker.bootstrap_servers, acks="all", metadata_max_age_ms=1000
    ) as producer:
        yield EventProducer(producer)


@asynccontextmanager
async def kafka(partitions: int = 1) -> AsyncIterator[KafkaBroker]:
    """A broker with both topics."""
    async with KafkaBroker() as broker:
        await broker.create_topic(TOPIC, partitions)
        await broker.create_topic(DEAD_LETTERS)
        yield broker


def bridge_process(
    redis_url: str,
    broker: KafkaBroker,
    *,
    settings: Mapping[str, str] | None = None,
    ready_status: int | None = 200,
) -> ServiceProcess:
    """`websocket-service bridge`."""
    return ServiceProcess(
        redis_url,
        settings={"KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers, **(settings or {})},
        command=BRIDGE,
        ready_status=ready_status,
    )


class Tabs:
    """A plain and a v1 tab of teacher-1, and what each of them shows."""

    def __init__(self, plain: ClientConnection, v1: Tab) -> None:
        self._plain = plain
        self._v1 = v1

    async def numbers(self, last: set[int]) -> list[int]:
        """All that is shown, up to the last one of `last`, which is the same in both tabs."""
        async with asyncio.timeout(SHOWN_WITHIN_S):
            plain = await self._until(last, self._next_plain)
            v1 = await self._until(last, self._next_v1)
        assert plain == v1
        return plain

    async def _until(self, last: set[int], number: Callable[[], Awaitable[int]]) -> list[int]:
        shown: list[int] = []
        while not last <= set(shown):
            shown.append(await number())
        return shown

    async def _next_plain(self) -> int:
        number: int = json.loads(await self._plain.recv())["data"]["n"]
        return number

    async def _next_v1(self) -> int:
        [number] = await self._v1.numbers(1)
        return number


@asynccontextmanager
async def tabs(service: ServiceProcess) -> AsyncIterator[Tabs]:
    """Both, connected."""
    async with service.connect() as plain, v1_tab(service, "teacher-1") as v1:
        yield Tabs(plain, v1)


async def wait_for_metric(
    service: ServiceProcess, name: str, wanted: Callable[[float], bool]
) -> None:
    """Return once a sample of `/metrics` is as wanted."""

    async def is_as_wanted() -> bool:
        return wanted((await service.metrics()).get(name, 0))

    await until(is_as_wanted)


async def kafka_check(service: ServiceProcess) -> str:
    """What `/readyz` says of Kafka."""
    _, _, body = await service.http("/readyz")
    check: str = json.loads(body)["checks"]["kafka"]
    return check
