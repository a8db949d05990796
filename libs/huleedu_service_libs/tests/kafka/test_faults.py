"""What a publisher sees while Kafka is in trouble."""

import asyncio
import json
import logging
from typing import Any

import pytest
from aiokafka.errors import (
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    NotLeaderForPartitionError,
    TopicAuthorizationFailedError,
)

from common_core.events.envelope import EventEnvelope
from huleedu_service_libs.kafka_client import KafkaBus
from huleedu_service_libs.testing.kafka_broker import KafkaBroker, KafkaRequest
from huleedu_service_libs.testing.kafka_records import RecordReader, record_reader
from huleedu_service_libs.testing.polling import until

TIMEOUT_S = 1.0
# Only a publisher that is never told takes so long.
GIVE_UP_AFTER_S = 20.0


def event(number: int) -> EventEnvelope[Any]:
    return EventEnvelope(event_type="order.placed", source_service="orders", data=number)


async def next_number(reader: RecordReader) -> int:
    number: int = json.loads((await reader.next()).value)["data"]
    return number


def bus_for(broker: KafkaBroker, timeout_s: float = TIMEOUT_S) -> KafkaBus:
    return KafkaBus(
        client_id="orders", bootstrap_servers=broker.bootstrap_servers, timeout_s=timeout_s
    )


async def until_published(bus: KafkaBus, number: int) -> None:
    """Publish again and again, as a caller would, until Kafka has it."""

    async def is_published() -> bool:
        try:
            await bus.publish("orders", event(number))
        except KafkaError:
            return False
        return True

    await until(is_published)


async def until_connected(bus: KafkaBus, *, connected: bool) -> None:
    async def is_so() -> bool:
        return bus.connected is connected

    await until(is_so)


async def test_kafka_comes_later() -> None:
    """A service starts while Kafka is away, and publishes once it is there."""
    async with KafkaBroker() as broker:
        await broker.create_topic("orders")
        await broker.go_away()
        async with bus_for(broker) as bus, asyncio.timeout(GIVE_UP_AFTER_S):
            with pytest.raises(KafkaTimeoutError, match="it was not sent"):
                await bus.publish("orders", event(1))
            await until_connected(bus, connected=False)
            await broker.come_back()
            await until_published(bus, 2)
            await until_connected(bus, connected=True)
        async with record_reader(broker.bootstrap_servers, "orders") as reader:
            assert await next_number(reader) == 2


async def test_publishing_waits_for_kafka() -> None:
    """An event that is published while Kafka is away for a moment is written when it is back."""
    async with KafkaBroker() as broker:
        await broker.create_topic("orders")
        await broker.go_away()
        async with bus_for(broker, timeout_s=GIVE_UP_AFTER_S) as bus:
            publishing = [asyncio.create_task(bus.publish("orders", event(n))) for n in range(9)]
            await asyncio.wait(publishing, timeout=0.1)
            await broker.come_back()
            await asyncio.gather(*publishing)
        async with record_reader(broker.bootstrap_servers, "orders") as reader:
            assert [await next_number(reader) for _ in range(9)] == list(range(9))


async def test_what_has_failed_is_not_sent_later() -> None:
    """Events whose publishers were told that they failed do not appear when Kafka is back."""
    async with KafkaBroker() as broker:
        await broker.create_topic("orders")
        async with bus_for(broker) as bus, asyncio.timeout(GIVE_UP_AFTER_S):
            await bus.publish("orders", event(1))
            await broker.go_away()
            outcomes = await asyncio.gather(
                *(bus.publish("orders", event(n)) for n in range(2, 9)), return_exceptions=True
            )
            assert all(isinstance(outcome, KafkaError) for outcome in outcomes)
            await broker.come_back()
            await until_published(bus, 9)
        async with record_reader(broker.bootstrap_servers, "orders") as reader:
            assert [await next_number(reader), await next_number(reader)] == [1, 9]


async def test_hanging_kafka() -> None:
    """A Kafka that says nothing is given up in time, and used again when it goes on."""
    async with KafkaBroker() as broker:
        await broker.create_topic("orders")
        async with bus_for(broker) as bus, asyncio.timeout(GIVE_UP_AFTER_S):
            await bus.publish("orders", event(1))
            broker.hang()
            for number in (2, 3):
                with pytest.raises(KafkaError):
                    await bus.publish("orders", event(number))
            await until_connected(bus, connected=False)
            broker.resume()
            await until_published(bus, 4)
        async with record_reader(broker.bootstrap_servers, "orders") as reader:
            numbers = [await next_number(reader)]
            while numbers[-1] != 4:
                numbers.append(await next_number(reader))
        # The kernel had taken the second before the broker was given up.
        assert numbers in ([1, 4], [1, 2, 4])


@pytest.mark.parametrize("is_used", [False, True])
async def test_stop_while_kafka_hangs(is_used: bool) -> None:
    """A Kafka that says nothing does not keep a service from ending."""
    async with KafkaBroker() as broker:
        await broker.create_topic("orders")
        async with bus_for(broker) as bus:
            if is_used:
                await bus.publish("orders", event(1))
            broker.hang()
            publishing = asyncio.create_task(bus.publish("orders", event(2)))
            await asyncio.sleep(0)  # it has begun
            async with asyncio.timeout(GIVE_UP_AFTER_S):
                await bus.stop()
            with pytest.raises(KafkaError):
                await publishing


async def test_stop_with_a_queue() -> None:
    """All who wait for their turn are told when the bus is stopped."""
    async with KafkaBroker() as broker:
        await broker.create_topic("orders")
        async with bus_for(broker) as bus, asyncio.timeout(GIVE_UP_AFTER_S):
            await bus.publish("orders", event(1))
            broker.hang()
            large: EventEnvelope[Any] = EventEnvelope(
                event_type="order.placed", source_service="orders", data="x" * 900_000
            )
            publishing = [asyncio.create_task(bus.publish("orders", large)) for _ in range(9)]
            await asyncio.sleep(0)  # each has begun
            await bus.stop()
            outcomes = await asyncio.gather(*publishing, return_exceptions=True)
            assert all(isinstance(outcome, KafkaError) for outcome in outcomes)


async def test_stop_while_kafka_is_away() -> None:
    """Whoever waits for Kafka is told when the bus is stopped."""
    async with KafkaBroker() as broker:
        await broker.go_away()
        async with bus_for(broker, timeout_s=120) as bus, asyncio.timeout(GIVE_UP_AFTER_S):
            publishing = asyncio.create_task(bus.publish("orders", event(1)))
            await asyncio.sleep(0)  # it has begun
            await bus.stop()
            with pytest.raises(KafkaError, match="was stopped"):
                await publishing


async def test_kafka_comes_back_elsewhere() -> None:
    """A fresh Kafka at another one of the addresses is found, and takes what comes."""
    async with KafkaBroker() as first, KafkaBroker() as second:
        await first.create_topic("orders")
        await second.go_away()
        bus = KafkaBus(
            client_id="orders",
            bootstrap_servers=f"{first.bootstrap_servers},{second.bootstrap_servers}",
            timeout_s=TIMEOUT_S,
        )
        async with bus, asyncio.timeout(GIVE_UP_AFTER_S):
            await until_published(bus, 1)
            await first.go_away()
            await second.come_back()
            await until_published(bus, 2)
        async with record_reader(second.bootstrap_servers, "orders") as reader:
            assert await next_number(reader) == 2


async def test_lost_acknowledgement() -> None:
    """An event whose acknowledgement is lost is sent again, as the same event."""
    async with KafkaBroker() as broker:
        await broker.create_topic("orders")
        async with bus_for(broker, timeout_s=GIVE_UP_AFTER_S) as bus:
            await bus.publish("orders", event(1))
            await broker.delay(5)
            publishing = asyncio.create_task(bus.publish("orders", event(2)))
            await asyncio.wait({publishing}, timeout=1)  # written, and not acknowledged
            await broker.go_away()
            await broker.delay(0)
            await broker.come_back()
            await publishing
        async with record_reader(broker.bootstrap_servers, "orders") as reader:
            assert await next_number(reader) == 1
            assert (await reader.next()).value == (await reader.next()).value


async def test_leader_moves() -> None:
    """An event that a broker does not take, since another one leads now, is sent again."""
    async with KafkaBroker() as broker:
        await broker.create_topic("orders")
        async with bus_for(broker, timeout_s=GIVE_UP_AFTER_S) as bus:
            await bus.publish("orders", event(1))
            await broker.fail(KafkaRequest.PRODUCE, NotLeaderForPartitionError.errno, times=2)
            await bus.publish("orders", event(2))
            await bus.publish("orders", event(3))
        async with record_reader(broker.bootstrap_servers, "orders") as reader:
            assert [await next_number(reader) for _ in range(3)] == [1, 2, 3]


@pytest.mark.parametrize("error", [MessageSizeTooLargeError, TopicAuthorizationFailedError])
async def test_refused_event(error: type[KafkaError]) -> None:
    """An event that the broker refuses fails at once, and alone."""
    async with KafkaBroker() as broker:
        await broker.create_topic("orders")
        async with bus_for(broker, timeout_s=GIVE_UP_AFTER_S) as bus:
            await bus.publish("orders", event(1))
            await broker.fail(KafkaRequest.PRODUCE, error.errno)
            with pytest.raises(error):
                await bus.publish("orders", event(2))
            await bus.publish("orders", event(3))
        async with record_reader(broker.bootstrap_servers, "orders") as reader:
            assert [await next_number(reader) for _ in range(2)] == [1, 3]


async def test_cancelled_publisher() -> None:
    """A caller that no longer waits takes nothing from the others."""
    async with KafkaBroker() as broker:
        await broker.create_topic("orders")
        async with bus_for(broker, timeout_s=GIVE_UP_AFTER_S) as bus:
            await bus.publish("orders", event(1))
            broker.hang()
            publishing = [asyncio.create_task(bus.publish("orders", event(n))) for n in (2, 3)]
            await asyncio.wait(publishing, timeout=0.1)
            publishing[0].cancel()
            broker.resume()
            await publishing[1]
        async with record_reader(broker.bootstrap_servers, "orders") as reader:
            numbers = [await next_number(reader)]
            while numbers[-1] != 3:
                numbers.append(await next_number(reader))
        assert numbers in ([1, 3], [1, 2, 3])


async def test_connected(caplog: pytest.LogCaptureFixture) -> None:
    """Whether Kafka answers is known without publishing, and logged when it changes."""
    caplog.set_level(logging.INFO, "huleedu_service_libs.kafka_link")

    def lines() -> list[str]:
        return [r.getMessage() for r in caplog.records if r.name.endswith("kafka_link")]

    async with KafkaBroker() as broker, bus_for(broker) as bus:
        await until_connected(bus, connected=True)
        await broker.go_away()
        await until_connected(bus, connected=False)
        with pytest.raises(KafkaTimeoutError):
            await bus.publish("orders", event(1))
        await broker.come_back()
        await until_connected(bus, connected=True)
    first, *away, last = lines()
    assert first == last == "Kafka answers"
    # What it found out by asking, and then by connecting: each is said once.
    assert len(away) == len(set(away)) <= 3
    assert all(line.startswith("Kafka is away, trying again: ") for line in away)
    assert "Connect call failed" in away[-1]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        # Versions 5 to 3 of the first request: the right form, and nonsense.
        bytes.fromhex("00000010 00000000 0000 00000001 0000 0005 0003"),
    ],
)
async def test_who_answers_is_no_kafka(caplog: pytest.LogCaptureFixture, answer: bytes) -> None:
    """Something else on the port is as good as no Kafka, and the log says so."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.read(12)
        correlation_id = request[8:12]
        writer.write(answer[:4] + correlation_id + answer[8:])
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with (
        server,
        KafkaBus(
            client_id="orders", bootstrap_servers=f"127.0.0.1:{port}", timeout_s=TIMEOUT_S
        ) as bus,
    ):
        with pytest.raises(KafkaTimeoutError, match="it was not sent"):
            await bus.publish("orders", event(1))
    assert "Kafka is away" in caplog.text
