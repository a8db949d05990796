"""What is published; also runs against the brokers that KAFKA_TEST_BOOTSTRAP_SERVERS names."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest
from aiokafka.errors import KafkaError, MessageSizeTooLargeError
from opentelemetry.sdk.trace import TracerProvider

from common_core.events.envelope import EventEnvelope
from huleedu_service_libs.kafka_client import MAX_RECORD_BYTES, KafkaBus
from huleedu_service_libs.observability import get_current_trace_id, trace_operation
from huleedu_service_libs.testing.kafka_for_tests import KafkaForTests, kafka_for_tests
from huleedu_service_libs.testing.kafka_records import record_reader

if TYPE_CHECKING:
    from huleedu_service_libs.protocols import KafkaPublisherProtocol

# The process has no tracing: other tests rely on that.
TRACER = TracerProvider().get_tracer("orders")
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
async def kafka() -> AsyncIterator[KafkaForTests]:
    async with kafka_for_tests() as kafka:
        yield kafka


def event(data: object, metadata: dict[str, Any] | None = None) -> EventEnvelope[Any]:
    return EventEnvelope(
        event_type="order.placed", source_service="orders", data=data, metadata=metadata
    )


async def published(kafka: KafkaForTests, envelope: EventEnvelope[Any]) -> EventEnvelope[Any]:
    """What readers get of the envelope."""
    await kafka.create_topic("orders")
    async with (
        KafkaBus(client_id="orders", bootstrap_servers=kafka.bootstrap_servers) as bus,
        record_reader(kafka.bootstrap_servers, "orders") as reader,
    ):
        await bus.publish("orders", envelope)
        record = await reader.next()
    return EventEnvelope[Any].model_validate_json(record.value)


async def test_event(kafka: KafkaForTests) -> None:
    """An event arrives with its key and headers, and can be read as it was."""
    await kafka.create_topic("orders")
    envelope = event({"order": "Smörgås"})
    async with KafkaBus(client_id="orders", bootstrap_servers=kafka.bootstrap_servers) as bus:
        publisher: KafkaPublisherProtocol = bus
        await publisher.publish("orders", envelope, "teacher-1", {"text": "é", "raw": b"\xff"})
        async with record_reader(kafka.bootstrap_servers, "orders") as reader:
            record = await reader.next()
    assert EventEnvelope[Any].model_validate_json(record.value) == envelope
    assert record.key == b"teacher-1"
    assert record.headers == (("text", "é".encode()), ("raw", b"\xff"))


async def test_trace_context(kafka: KafkaForTests) -> None:
    """An event that is published within a span carries its trace, and keeps its metadata."""
    envelope = event({}, {"origin": "test"})
    with trace_operation(TRACER, "place"):
        trace_id = get_current_trace_id()
        read = await published(kafka, envelope)
    assert trace_id is not None
    assert read.metadata is not None
    assert read.metadata["traceparent"].split("-")[1] == trace_id
    assert read.metadata["origin"] == "test"
    assert envelope.metadata == {"origin": "test"}


async def test_given_trace_context(kafka: KafkaForTests) -> None:
    """A trace context that an event has already is left alone."""
    with trace_operation(TRACER, "place"):
        read = await published(kafka, event({}, {"traceparent": TRACEPARENT}))
    assert read.metadata == {"traceparent": TRACEPARENT}


async def test_no_trace(kafka: KafkaForTests) -> None:
    """Outside a span nothing is added."""
    assert (await published(kafka, event({}))).metadata is None


async def test_order(kafka: KafkaForTests) -> None:
    """Events of one key keep their order when many tasks publish at once."""
    await kafka.create_topic("orders", partitions=3)
    count = 600
    async with (
        KafkaBus(
            client_id="orders", bootstrap_servers=kafka.bootstrap_servers, timeout_s=20
        ) as bus,
        record_reader(kafka.bootstrap_servers, "orders") as reader,
        asyncio.TaskGroup() as group,
    ):
        for number in range(count):
            # Of different sizes, so that batches fill up in the middle.
            data = {"number": number, "padding": "x" * (number * 37 % 1000)}
            group.create_task(bus.publish("orders", event(data), f"teacher-{number % 5}"))
        numbers: dict[bytes, list[int]] = {}
        for _ in range(count):
            record = await reader.next()
            assert record.key is not None
            numbers.setdefault(record.key, []).append(json.loads(record.value)["data"]["number"])
    assert len(numbers) == 5
    assert all(each == sorted(each) and len(each) == count // 5 for each in numbers.values())


async def test_too_large(kafka: KafkaForTests) -> None:
    """An event that is too large is refused by its size, and the next one is published."""
    await kafka.create_topic("orders")
    async with KafkaBus(client_id="orders", bootstrap_servers=kafka.bootstrap_servers) as bus:
        with pytest.raises(MessageSizeTooLargeError, match=f"the limit is {MAX_RECORD_BYTES}"):
            await bus.publish("orders", event("x" * MAX_RECORD_BYTES))
        # Envelope and all, just below the limit.
        await bus.publish("orders", event("x" * (MAX_RECORD_BYTES - 400)))


async def test_nothing_is_lost_by_stop(kafka: KafkaForTests) -> None:
    """What is being published when the bus is stopped is written."""
    await kafka.create_topic("orders")
    async with KafkaBus(client_id="orders", bootstrap_servers=kafka.bootstrap_servers) as bus:
        await bus.publish("orders", event(-1))
        publishing = [asyncio.create_task(bus.publish("orders", event(n))) for n in range(20)]
        await asyncio.sleep(0)  # each has begun
        await bus.stop()
        await asyncio.gather(*publishing)
    async with record_reader(kafka.bootstrap_servers, "orders") as reader:
        numbers = [json.loads((await reader.next()).value)["data"] for _ in range(21)]
    assert numbers == list(range(-1, 20))


async def test_lifecycle(kafka: KafkaForTests) -> None:
    """A bus works between start and stop, as often as it is started, and says so elsewhere."""
    await kafka.create_topic("orders")
    bus = KafkaBus(client_id="orders", bootstrap_servers=kafka.bootstrap_servers)
    with pytest.raises(RuntimeError, match="not started"):
        await bus.publish("orders", event(1))
    await bus.stop()
    for _ in range(2):
        await bus.start()
        with pytest.raises(RuntimeError, match="started already"):
            await bus.start()
        await bus.publish("orders", event(1))
        while_started = bus.connected
        await bus.stop()
        assert (while_started, bus.connected) == (True, False)
        with pytest.raises(RuntimeError, match="not started") as refusal:
            await bus.publish("orders", event(1))
        assert not isinstance(refusal.value, KafkaError)


async def test_stop_at_once(kafka: KafkaForTests) -> None:
    """A bus that is stopped before it has connected leaves nothing behind."""
    async with KafkaBus(client_id="orders", bootstrap_servers=kafka.bootstrap_servers) as bus:
        await asyncio.sleep(0)  # its task has begun
    assert not bus.connected


def test_no_address() -> None:
    """A bus without an address is refused where it is made."""
    with pytest.raises(ValueError, match="KAFKA_BOOTSTRAP_SERVERS has ''"):
        KafkaBus(client_id="orders", bootstrap_servers="")
