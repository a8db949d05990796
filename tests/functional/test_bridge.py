"""What a teacher sees of what backend services say over Kafka."""

import json
import signal
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import pytest

from huleedu_service_libs.redis_server import RedisServer
from huleedu_service_libs.testing.kafka_broker import KafkaBroker
from huleedu_service_libs.testing.kafka_records import record_reader
from tests.functional.collector import collector
from tests.service_process import SERVE, ServiceProcess
from tests.teacher_events import (
    DEAD_LETTERS,
    TOPIC,
    bridge_process,
    event_producer,
    kafka,
    tabs,
    teacher_event,
    wait_for_metric,
)

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"


@pytest.fixture
async def broker() -> AsyncIterator[KafkaBroker]:
    async with kafka() as running:
        yield running


def with_bridge(redis: RedisServer, broker: KafkaBroker, **settings: str) -> ServiceProcess:
    return ServiceProcess(
        redis.url, settings={"KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers, **settings}
    )


async def test_an_event_becomes_a_notification(
    redis_server: RedisServer, broker: KafkaBroker
) -> None:
    """The tab shows the payload with the event's own fields, in both dialects."""
    envelope = {
        "event_id": str(uuid4()),
        "event_type": "huleedu.whatever.v1",
        "source_service": "batch_orchestrator_service",
        "correlation_id": str(UUID(int=7)),
        "data": {
            "teacher_id": "teacher-1",
            "notification_type": "batch_cj_assessment_completed",
            "category": "processing_results",
            "priority": "immediate",
            "payload": {"batch_id": "of the payload", "class_id": "replaced", "essays": 25},
            "action_required": True,
            "deadline_timestamp": "2026-12-01T12:00:00+01:00",
            "correlation_id": "of the event",
            "class_id": "class-1",
            "timestamp": "2026-11-21T10:00:00Z",
        },
    }
    async with (
        with_bridge(redis_server, broker) as service,
        service.connect() as tab,
        event_producer(broker) as producer,
    ):
        await producer.send(json.dumps(envelope).encode())
        shown = json.loads(await tab.recv())
    assert shown["event"] == "batch_cj_assessment_completed"
    assert shown["correlation_id"] == str(UUID(int=7))
    assert shown["source_service"] == "batch_orchestrator_service"
    assert shown["data"] == {
        "essays": 25,
        "category": "processing_results",
        "priority": "immediate",
        "action_required": True,
        "deadline": "2026-12-01T11:00:00+00:00",
        "batch_id": "of the payload",
        "class_id": "class-1",
        "correlation_id": "of the event",
        "timestamp": "2026-11-21T10:00:00+00:00",
    }


async def test_malformed_events_block_nobody(
    redis_server: RedisServer, broker: KafkaBroker
) -> None:
    """Between good events of a partition all sorts of others are set aside, each with a reason."""
    unpublishable = json.loads(teacher_event(0))
    unpublishable["data"]["payload"]["text"] = "x" * 70_000
    lone_surrogate = teacher_event(0).replace(b'"payload":{', b'"payload":{"t":"\\ud800",')
    malformed: list[tuple[bytes | None, str]] = [
        (None, "tombstone"),
        (b"", "not_json"),
        (b"\xff\xfe", "not_json"),
        (b'{"event_id":', "not_json"),
        (teacher_event(0).replace(b'"n":0', b'"n":NaN'), "not_json"),
        (b"[" * 100_000, "not_json"),
        (b"[]", "invalid_event"),
        (b"{}", "invalid_event"),
        (teacher_event(0).replace(b'"high"', b'"low-ish"'), "invalid_event"),
        (teacher_event(0, teacher="x").replace(b'"teacher_id":"x"', b'"a":1'), "invalid_event"),
        (json.dumps(unpublishable).encode(), "unpublishable"),
        (lone_surrogate, "unpublishable"),
        (teacher_event(0).replace(b'"n":0', b'"n":1e999'), "unpublishable"),
    ]
    async with (
        with_bridge(redis_server, broker) as service,
        tabs(service) as shown,
        event_producer(broker) as producer,
        record_reader(broker.bootstrap_servers, DEAD_LETTERS) as reader,
    ):
        for number, (value, _) in enumerate(malformed):
            await producer.send(teacher_event(number))
            await producer.send(value, key=b"the key")
        await producer.send(teacher_event(len(malformed)))
        assert await shown.numbers({len(malformed)}) == list(range(len(malformed) + 1))
        letters = [await reader.next() for _ in malformed]
        await wait_for_metric(
            service,
            'websocket_bridge_events_total{result="dead_lettered"}',
            lambda count: count == len(malformed),
        )
        output = service.output()
    assert [letter.value for letter in letters] == [value for value, _ in malformed]
    assert {letter.key for letter in letters} == {b"the key"}
    headers = [dict(letter.headers) for letter in letters]
    assert [one["dead-letter-reason"].decode() for one in headers] == [why for _, why in malformed]
    assert {one["dead-letter-topic"].decode() for one in headers} == {TOPIC}
    assert [int(one["dead-letter-offset"]) for one in headers] == list(
        range(1, 2 * len(malformed), 2)
    )
    assert output.count("event set aside") == len(malformed)
    # At the level DEBUG, Kafka's client would write down all that it gets.
    assert "xxxx" not in output


@pytest.mark.parametrize("metadata", [[1], 7, "text", {"traceparent": 7, "tracestate": [1]}])
async def test_odd_metadata_does_no_harm(
    redis_server: RedisServer, broker: KafkaBroker, metadata: Any
) -> None:
    """Whatever stands where a trace context belongs, the notification is shown."""
    event = json.loads(teacher_event(1)) | {"metadata": metadata}
    async with (
        with_bridge(redis_server, broker) as service,
        tabs(service) as shown,
        event_producer(broker) as producer,
    ):
        await producer.send(json.dumps(event).encode())
        assert await shown.numbers({1}) == [1]


async def test_an_event_without_an_id_is_shown_once(
    redis_server: RedisServer, broker: KafkaBroker
) -> None:
    """A service that sends the same event twice without an id does not annoy the teacher."""
    event = json.loads(teacher_event(1))
    del event["event_id"]
    async with (
        with_bridge(redis_server, broker) as service,
        tabs(service) as shown,
        event_producer(broker) as producer,
    ):
        await producer.send(json.dumps(event).encode())
        await producer.send(json.dumps(event).encode())
        await producer.send(teacher_event(2))
        assert await shown.numbers({2}) == [1, 2]


@pytest.mark.parametrize("exported", [False, True])
async def test_a_trace_goes_through(
    redis_server: RedisServer, broker: KafkaBroker, *, exported: bool
) -> None:
    """From the event to the tab it is one trace, whether this service exports spans or not."""
    async with collector() as spans:
        settings = spans.settings if exported else {}
        async with (
            with_bridge(redis_server, broker, **settings) as service,
            service.connect() as tab,
            event_producer(broker) as producer,
        ):
            await producer.send(teacher_event(1, metadata={"traceparent": TRACEPARENT}))
            metadata = json.loads(await tab.recv())["metadata"]
            assert metadata["traceparent"].split("-")[1] == TRACE_ID
            if exported:
                [published] = await spans.wait_for(
                    lambda span: span.name == "bridge.publish_notification"
                )
                [forwarded] = await spans.wait_for(lambda span: span.name == "websocket.forward")
                assert published.kind == published.SPAN_KIND_CONSUMER
                assert published.parent_span_id.hex() == PARENT_ID
                assert forwarded.trace_id.hex() == TRACE_ID
                assert forwarded.parent_span_id == published.span_id
            else:
                assert metadata["traceparent"] == TRACEPARENT


async def test_the_bridge_alone(redis_server: RedisServer, broker: KafkaBroker) -> None:
    """As a process of its own it needs no secret, serves no WebSocket, and ends with status 0."""
    production = {"ENVIRONMENT": "production", "JWT_SECRET_KEY": ""}
    async with (
        bridge_process(redis_server.url, broker, settings=production) as bridge,
        ServiceProcess(redis_server.url) as service,
        tabs(service) as shown,
        event_producer(broker) as producer,
    ):
        await producer.send_numbers(range(3))
        assert await shown.numbers({2}) == [0, 1, 2]
        assert (await bridge.http("/healthz"))[0] == 200
        assert (await bridge.http("/ws"))[0] == 404
        metrics = await bridge.metrics()
        assert metrics['websocket_bridge_events_total{result="published"}'] == 3
        assert metrics["websocket_bridge_partitions"] == 1
        assert "websocket_connections" not in metrics
        # The service itself has no Kafka and says nothing of it.
        assert "kafka" not in json.loads((await service.http("/readyz"))[2])["checks"]
        assert not [name for name in await service.metrics() if "bridge" in name]
        bridge.signal(signal.SIGINT)
        assert await bridge.wait() == 0


async def test_the_bridge_wants_to_know_where_kafka_is(redis_server: RedisServer) -> None:
    """Without an address it says which variable is missing, and ends with status 1."""
    async with KafkaBroker() as broker:
        bridge = bridge_process(
            redis_server.url, broker, settings={"KAFKA_BOOTSTRAP_SERVERS": ""}, ready_status=None
        )
        async with bridge:
            assert await bridge.wait() == 1
            [line] = bridge.output().splitlines()
    assert line.startswith("Error: KAFKA_BOOTSTRAP_SERVERS must be set")


async def test_each_worker_has_a_bridge(redis_server: RedisServer, broker: KafkaBroker) -> None:
    """Whichever worker answers, probes and metrics tell of Kafka; all of them end in order."""
    async with ServiceProcess(
        redis_server.url,
        settings={"KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers},
        command=(*SERVE, "--workers", "2"),
    ) as service:
        # The mock lets several members into a group by chance: one of them reads the partition.
        await wait_for_metric(service, "websocket_bridge_partitions", lambda count: count == 1)
        assert "kafka" in json.loads((await service.http("/readyz"))[2])["checks"]
        assert await service.terminate() == 0
        assert "Traceback" not in service.output()
