"""Commands while Kafka is away, hangs or refuses."""

import asyncio
import json

from aiokafka.errors import TopicAuthorizationFailedError

from huleedu_service_libs.redis_server import RedisServer
from huleedu_service_libs.testing.kafka_broker import KafkaBroker, KafkaRequest
from huleedu_service_libs.testing.kafka_records import record_reader
from huleedu_service_libs.testing.polling import until
from tests.gateway_process import COMMANDS_TOPIC, GatewayProcess

FAILURES = f'gateway_events_published_total{{result="failure",topic="{COMMANDS_TOPIC}"}}'
CONNECTED = "gateway_kafka_connected"
ONE_SECOND = {"API_GATEWAY_KAFKA_PUBLISH_TIMEOUT_SECONDS": "1"}
# Several times what the gateway may take: only for what never ends.
DEADLINE_S = 20


def gateway_of(kafka: KafkaBroker, redis_server: RedisServer) -> GatewayProcess:
    """One that gives Kafka a second."""
    return GatewayProcess(
        kafka=kafka.bootstrap_servers, redis_url=redis_server.url, settings=ONE_SECOND
    )


async def refused(gateway: GatewayProcess, batch_id: str = "batch-1") -> None:
    """A command is refused in the words that clients know."""
    async with asyncio.timeout(DEADLINE_S):
        status, headers, body = await gateway.request_pipeline(batch_id)
    error = json.loads(body)["error"]
    assert (status, error["code"]) == (503, "KAFKA_PUBLISH_ERROR")
    assert error["details"] == {"topic": COMMANDS_TOPIC}
    assert error["correlation_id"] == headers["x-correlation-id"]
    assert "send it again" in error["message"]
    assert "127.0.0.1" not in body.decode()


async def accepted_in_the_end(gateway: GatewayProcess, batch_id: str) -> None:
    """A command is accepted, once it has been sent often enough."""
    async with asyncio.timeout(DEADLINE_S):
        while (status := (await gateway.request_pipeline(batch_id))[0]) != 202:
            assert status == 503


async def test_the_gateway_starts_without_kafka(
    kafka: KafkaBroker, redis_server: RedisServer
) -> None:
    """Whoever asks while Kafka is away is told so, and served as soon as it is there."""
    await kafka.go_away()
    async with gateway_of(kafka, redis_server) as gateway:
        await refused(gateway)
        assert (await gateway.http("/healthz"))[0] == 200
        assert (await gateway.metrics())[FAILURES] == 1
        await kafka.come_back()
        await accepted_in_the_end(gateway, "batch-2")
        async with record_reader(kafka.bootstrap_servers, COMMANDS_TOPIC) as reader:
            assert (await reader.next()).key == b"batch-2"


async def test_kafka_goes_and_comes_back(kafka: KafkaBroker, redis_server: RedisServer) -> None:
    """A command that was not acknowledged is refused; afterwards all is as before."""
    async with (
        gateway_of(kafka, redis_server) as gateway,
        record_reader(kafka.bootstrap_servers, COMMANDS_TOPIC) as reader,
    ):
        await accepted_in_the_end(gateway, "batch-1")
        assert (await reader.next()).key == b"batch-1"
        await kafka.go_away()
        await refused(gateway)
        await kafka.come_back()
        await accepted_in_the_end(gateway, "batch-2")
        while (key := (await reader.next()).key) != b"batch-2":
            # Refused, and written all the same: that is what clients are told to expect.
            assert key == b"batch-1"


async def test_a_metric_tells_whether_kafka_answers(
    kafka: KafkaBroker, redis_server: RedisServer
) -> None:
    """Operators see that Kafka is away before anybody has given a command, and that it is back."""

    async def is_there() -> bool:
        return (await gateway.metrics())[CONNECTED] == 1

    async def is_away() -> bool:
        return (await gateway.metrics())[CONNECTED] == 0

    async with gateway_of(kafka, redis_server) as gateway:
        await until(is_there)
        await kafka.go_away()
        await until(is_away)
        await kafka.come_back()
        await until(is_there)


async def test_a_kafka_that_hangs_holds_nobody_up(
    kafka: KafkaBroker, redis_server: RedisServer
) -> None:
    """However many ask, each has an answer in bounded time, and other requests are served."""
    async with gateway_of(kafka, redis_server) as gateway:
        await accepted_in_the_end(gateway, "batch-1")
        kafka.hang()
        try:
            async with asyncio.TaskGroup() as tasks:
                for number in range(20):
                    tasks.create_task(refused(gateway, f"batch-{number}"))
                assert (await gateway.http("/healthz"))[0] == 200
        finally:
            kafka.resume()
        await accepted_in_the_end(gateway, "batch-2")
        assert "unexpected exception" not in gateway.output()


async def test_a_kafka_that_refuses_is_no_failure_of_the_client(
    kafka: KafkaBroker, redis_server: RedisServer
) -> None:
    """Where the gateway may not write, the log says why, and the client only that it failed."""
    async with gateway_of(kafka, redis_server) as gateway:
        await accepted_in_the_end(gateway, "batch-1")
        await kafka.fail(KafkaRequest.PRODUCE, TopicAuthorizationFailedError.errno)
        await refused(gateway)
        assert "TopicAuthorizationFailedError" in gateway.output()
        await accepted_in_the_end(gateway, "batch-2")


async def test_commands_of_a_batch_keep_their_order(
    kafka: KafkaBroker, redis_server: RedisServer
) -> None:
    """What a teacher asks for one after the other, the backend hears in this order."""
    async with (
        gateway_of(kafka, redis_server) as one,
        gateway_of(kafka, redis_server) as other,
        record_reader(kafka.bootstrap_servers, COMMANDS_TOPIC) as reader,
    ):
        for number in range(10):
            gateway = (one, other)[number % 2]
            assert (await gateway.request_pipeline(retry_reason=f"try {number}"))[0] == 202
        reasons = [
            json.loads((await reader.next()).value or b"")["data"]["retry_reason"]
            for _ in range(10)
        ]
    assert reasons == [f"try {number}" for number in range(10)]
