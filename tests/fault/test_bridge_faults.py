"""What a teacher sees while Kafka, Redis or the bridge itself fail: each event, once."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from uuid import uuid4

import pytest
from aiokafka.errors import (
    CorruptRecordException,
    IllegalGenerationError,
    KafkaStorageError,
    MessageSizeTooLargeError,
    NotLeaderForPartitionError,
    OffsetMetadataTooLargeError,
    OffsetOutOfRangeError,
    RebalanceInProgressError,
    TopicAuthorizationFailedError,
    UnknownMemberIdError,
    UnknownTopicOrPartitionError,
)

from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_server import RedisServer
from huleedu_service_libs.testing.kafka_broker import KafkaBroker, KafkaRequest
from huleedu_service_libs.testing.kafka_records import record_reader
from huleedu_service_libs.testing.polling import until
from tests.fault.durability import DURABLE
from tests.fault.unread_answers import unread_answers
from tests.functional.v1_tab import publish
from tests.service_process import ServiceProcess
from tests.teacher_events import (
    DEAD_LETTERS,
    EventProducer,
    bridge_process,
    event_producer,
    kafka,
    kafka_check,
    tabs,
    teacher_event,
    wait_for_metric,
)

PUBLISHED = 'websocket_bridge_events_total{result="published"}'
DUPLICATE = 'websocket_bridge_events_total{result="duplicate"}'
DEAD_LETTERED = 'websocket_bridge_events_total{result="dead_lettered"}'
HEARD = "websocket_bridge_kafka_heard"
ENDS_WITHIN_S = 6
# Two groups read everything, and each event is published by one of them.
OF_ANOTHER_GROUP = {"KAFKA_CONSUMER_GROUP": "another"}


def failures(stage: str) -> str:
    return f'websocket_bridge_failures_total{{stage="{stage}"}}'


@pytest.fixture
async def broker() -> AsyncIterator[KafkaBroker]:
    async with kafka() as running:
        yield running


@pytest.fixture
async def producer(broker: KafkaBroker) -> AsyncIterator[EventProducer]:
    async with event_producer(broker) as running:
        yield running


async def test_a_bridge_killed_before_its_commit(
    service: ServiceProcess, redis_server: RedisServer, broker: KafkaBroker, producer: EventProducer
) -> None:
    """The next one reads the same events again, and no tab shows any of them twice."""
    async with tabs(service) as shown:
        # Each attempt comes later than the one before: some of these are left for the next bridge.
        await broker.fail(KafkaRequest.OFFSET_COMMIT, OffsetMetadataTooLargeError.errno, 6)
        async with bridge_process(redis_server.url, broker) as bridge:
            await producer.send_numbers(range(20))
            await wait_for_metric(bridge, PUBLISHED, lambda count: count == 20)
            bridge.signal_all(signal.SIGKILL)
            await bridge.wait()
        async with bridge_process(redis_server.url, broker) as bridge:
            await wait_for_metric(bridge, DUPLICATE, lambda count: count == 20)
            await producer.send_numbers(range(20, 23))
            assert await shown.numbers({22}) == list(range(23))

            async def has_committed() -> bool:
                return "the bridge goes on" in bridge.output()

            await until(has_committed)
        # What was committed does not come a third time.
        async with bridge_process(redis_server.url, broker) as bridge:
            await producer.send_numbers(range(23, 24))
            await wait_for_metric(bridge, PUBLISHED, lambda count: count == 1)
            assert (await bridge.metrics())[DUPLICATE] == 0


async def test_events_that_are_sent_twice_and_out_of_order(
    service: ServiceProcess, redis_server: RedisServer, broker: KafkaBroker, producer: EventProducer
) -> None:
    """Each is shown once, in the order in which it first came."""
    events = {number: teacher_event(number, event_id=uuid4()) for number in range(6)}
    async with tabs(service) as shown, bridge_process(redis_server.url, broker):
        for number in (3, 1, 3, 0, 1, 1, 4, 2, 0, 5):
            await producer.send(events[number])
        assert await shown.numbers({5}) == [3, 1, 0, 4, 2, 5]


@pytest.mark.parametrize(
    "error",
    [
        CorruptRecordException,
        KafkaStorageError,
        NotLeaderForPartitionError,
        OffsetOutOfRangeError,
        TopicAuthorizationFailedError,
        UnknownTopicOrPartitionError,
    ],
)
async def test_kafka_refuses_to_be_read(
    service: ServiceProcess,
    redis_server: RedisServer,
    broker: KafkaBroker,
    producer: EventProducer,
    error: type[CorruptRecordException],
) -> None:
    """Reading goes on by itself, with nothing lost and nothing twice."""
    async with tabs(service) as shown, bridge_process(redis_server.url, broker):
        await producer.send_numbers(range(3))
        await broker.fail(KafkaRequest.FETCH, error.errno, 5)
        await producer.send_numbers(range(3, 6))
        assert await shown.numbers({5}) == list(range(6))


@pytest.mark.parametrize(
    "error", [IllegalGenerationError, RebalanceInProgressError, UnknownMemberIdError]
)
async def test_kafka_refuses_a_commit(
    service: ServiceProcess,
    redis_server: RedisServer,
    broker: KafkaBroker,
    producer: EventProducer,
    error: type[IllegalGenerationError],
) -> None:
    """A member that its group has given up joins again and goes on."""
    async with tabs(service) as shown, bridge_process(redis_server.url, broker) as bridge:
        await broker.fail(KafkaRequest.OFFSET_COMMIT, error.errno, 2)
        await producer.send_numbers(range(3))
        await wait_for_metric(bridge, failures("commit"), lambda count: count >= 1)
        await producer.send_numbers(range(3, 6))
        assert await shown.numbers({5}) == list(range(6))


async def test_bridges_come_and_go(service: ServiceProcess, redis_server: RedisServer) -> None:
    """While events come, bridges join, leave and are killed: all is shown, nothing twice."""
    count = 400
    async with (
        kafka(partitions=4) as broker,
        event_producer(broker) as producer,
        tabs(service) as shown,
        AsyncExitStack() as bridges,
    ):

        async def send() -> None:
            for number in range(count):
                await producer.send(teacher_event(number), partition=number % 4)
                await asyncio.sleep(0.02)  # its pace

        def start() -> ServiceProcess:
            return bridge_process(redis_server.url, broker, ready_status=503)

        sending = asyncio.create_task(send())
        first = await bridges.enter_async_context(start())
        second = await bridges.enter_async_context(start())
        first.signal_all(signal.SIGKILL)
        # The last one stays alone: the mock lets several members in by chance.
        await bridges.enter_async_context(start())
        assert await second.terminate() == 0
        await sending
        assert sorted(await shown.numbers(set(range(count - 4, count)))) == list(range(count))


@asynccontextmanager
async def killed(redis: RedisServer) -> AsyncIterator[None]:
    """It comes back on the same port with what it had."""
    await redis.kill()
    yield
    await redis.launch()


@asynccontextmanager
async def hung(redis: RedisServer) -> AsyncIterator[None]:
    """Its connections stay open, but nothing comes over them."""
    redis.signal(signal.SIGSTOP)
    yield
    redis.signal(signal.SIGCONT)


@pytest.mark.parametrize("outage", [killed, hung])
async def test_redis_fails_in_the_middle(
    broker: KafkaBroker,
    producer: EventProducer,
    outage: Callable[[RedisServer], AbstractAsyncContextManager[None]],
) -> None:
    """Events wait in Kafka while Redis is away, and are shown once it is back."""
    async with (
        RedisServer(options=DURABLE) as redis,
        ServiceProcess(redis.url) as service,
        tabs(service) as shown,
        bridge_process(redis.url, broker) as bridge,
    ):
        await producer.send_numbers(range(3))
        await wait_for_metric(bridge, PUBLISHED, lambda count: count == 3)
        async with outage(redis):
            await producer.send_numbers(range(3, 6))
            await wait_for_metric(bridge, failures("publish"), lambda count: count >= 2)
            await bridge.wait_for_status("/readyz", 503)
        await bridge.wait_for_status("/readyz", 200)
        await service.wait_for_status("/readyz", 200)
        await producer.send_numbers(range(6, 8))
        assert await shown.numbers({7}) == list(range(8))
        metrics = await bridge.metrics()
        assert metrics[PUBLISHED] + metrics[DUPLICATE] == 8


@asynccontextmanager
async def away(broker: KafkaBroker) -> AsyncIterator[None]:
    """It cuts its connections and refuses new ones."""
    await broker.go_away()
    yield
    await broker.come_back()


@asynccontextmanager
async def silent(broker: KafkaBroker) -> AsyncIterator[None]:
    """Its connections stay open, but nothing comes over them."""
    broker.hang()
    yield
    broker.resume()


@pytest.mark.parametrize("outage", [away, silent])
async def test_kafka_fails_at_the_start(
    redis_server: RedisServer,
    outage: Callable[[KafkaBroker], AbstractAsyncContextManager[None]],
) -> None:
    """The service starts and serves; what was said meanwhile is shown once Kafka is there."""
    async with AsyncExitStack() as resources:
        broker = await resources.enter_async_context(kafka())
        async with event_producer(broker) as producer:
            await producer.send_numbers(range(3))
        async with outage(broker):
            service = await resources.enter_async_context(
                ServiceProcess(
                    redis_server.url,
                    settings={"KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers},
                )
            )
            bridge = await resources.enter_async_context(
                bridge_process(
                    redis_server.url, broker, settings=OF_ANOTHER_GROUP, ready_status=503
                )
            )
            shown = await resources.enter_async_context(tabs(service))
            assert await kafka_check(service) == "not heard within the last seconds"
            assert (await service.metrics())[HEARD] == 0
            await wait_for_metric(service, failures("fetch"), lambda count: count >= 1)
        assert await shown.numbers({2}) == [0, 1, 2]
        await wait_for_metric(service, HEARD, lambda heard: heard == 1)
        assert await kafka_check(service) == "ok"
        await bridge.wait_for_status("/readyz", 200)


@pytest.mark.parametrize("outage", [away, silent])
async def test_kafka_fails_later(
    redis_server: RedisServer,
    broker: KafkaBroker,
    outage: Callable[[KafkaBroker], AbstractAsyncContextManager[None]],
) -> None:
    """Probes and metrics tell; WebSockets are as good as before; then it goes on."""
    async with (
        event_producer(broker) as producer,
        ServiceProcess(
            redis_server.url, settings={"KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers}
        ) as service,
        bridge_process(redis_server.url, broker, settings=OF_ANOTHER_GROUP) as bridge,
        tabs(service) as shown,
        RedisClient(client_id="tests", redis_url=redis_server.url) as publisher,
    ):
        await producer.send_numbers(range(3))
        assert await shown.numbers({2}) == [0, 1, 2]
        async with outage(broker):
            await wait_for_metric(service, HEARD, lambda heard: heard == 0)
            await bridge.wait_for_status("/readyz", 503)
            assert (await service.http("/readyz"))[0] == 200
            assert await kafka_check(service) == "not heard within the last seconds"
            await publish(publisher, "teacher-1", [100])
            assert await shown.numbers({100}) == [100]
        await bridge.wait_for_status("/readyz", 200)
        await producer.send_numbers(range(3, 6))
        assert await shown.numbers({5}) == [3, 4, 5]


async def test_the_dead_letter_topic_fails(
    service: ServiceProcess, redis_server: RedisServer, broker: KafkaBroker, producer: EventProducer
) -> None:
    """Nothing behind a malformed event is committed before its dead letter is confirmed."""
    await producer.send_numbers(range(1))
    await producer.send(b"nonsense")
    await producer.send_numbers(range(1, 2))
    # Each attempt comes later than the one before: some of these are left for the next bridge.
    await broker.fail(KafkaRequest.PRODUCE, TopicAuthorizationFailedError.errno, 8)
    async with tabs(service) as shown:
        async with bridge_process(redis_server.url, broker) as bridge:
            await wait_for_metric(bridge, failures("dead_letter"), lambda count: count >= 2)
            assert (await bridge.metrics())[DEAD_LETTERED] == 0
            bridge.signal_all(signal.SIGKILL)
            await bridge.wait()
        async with (
            bridge_process(redis_server.url, broker) as bridge,
            record_reader(broker.bootstrap_servers, DEAD_LETTERS) as reader,
        ):
            assert (await reader.next()).value == b"nonsense"
            await producer.send_numbers(range(2, 3))
            assert await shown.numbers({2}) == [0, 1, 2]
            await wait_for_metric(bridge, DEAD_LETTERED, lambda count: count == 1)


async def test_a_dead_letter_that_is_too_large(
    service: ServiceProcess, redis_server: RedisServer, broker: KafkaBroker, producer: EventProducer
) -> None:
    """What the dead-letter topic does not take is told of there without its content."""
    await producer.send(b"x" * 100_000)
    await broker.fail(KafkaRequest.PRODUCE, MessageSizeTooLargeError.errno)
    async with (
        tabs(service) as shown,
        bridge_process(redis_server.url, broker),
        record_reader(broker.bootstrap_servers, DEAD_LETTERS) as reader,
    ):
        letter = await reader.next()
        assert not letter.value
        headers = dict(letter.headers)
        assert headers["dead-letter-reason"] == b"not_json"
        assert headers["dead-letter-offset"] == b"0"
        assert b"too large" in headers["dead-letter-omitted"]
        await producer.send_numbers(range(1))
        assert await shown.numbers({0}) == [0]


@pytest.mark.parametrize("hanging", ["kafka", "redis", "both"])
async def test_the_end_waits_for_nobody(
    broker: KafkaBroker, producer: EventProducer, hanging: str
) -> None:
    """A bridge that is told to end does so with status 0, whoever does not answer."""
    async with RedisServer() as redis, bridge_process(redis.url, broker) as bridge:
        await producer.send_numbers(range(3))
        await wait_for_metric(bridge, PUBLISHED, lambda count: count == 3)
        if hanging != "kafka":
            redis.signal(signal.SIGSTOP)
            await producer.send_numbers(range(3, 6))
            await wait_for_metric(bridge, failures("publish"), lambda count: count >= 1)
        if hanging != "redis":
            broker.hang()
        try:
            async with asyncio.timeout(ENDS_WITHIN_S):
                assert await bridge.terminate() == 0
        finally:
            redis.signal(signal.SIGCONT)
            broker.resume()
        assert "Traceback" not in bridge.output()


async def test_a_scraper_that_does_not_read_is_not_waited_for(
    redis_server: RedisServer, broker: KafkaBroker
) -> None:
    """The bridge ends in good order while somebody has asked for much, and takes nothing of it."""
    scrapes = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2_500
    async with (
        bridge_process(redis_server.url, broker) as bridge,
        unread_answers(bridge, scrapes),
    ):
        assert await bridge.terminate() == 0
        assert "bridge stopped" in bridge.output()
        assert "Traceback" not in bridge.output()


async def test_a_topic_that_is_not_there_yet(
    service: ServiceProcess, redis_server: RedisServer
) -> None:
    """The bridge waits for it, and reads it from its beginning."""
    async with (
        KafkaBroker() as broker,
        bridge_process(redis_server.url, broker),
        tabs(service) as shown,
        event_producer(broker) as producer,
    ):
        await producer.send_numbers(range(3))
        assert await shown.numbers({2}) == [0, 1, 2]
