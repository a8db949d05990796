"""The gateway while what it rests on is away, hangs, fails and comes back."""

import asyncio
import json
import signal
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from huleedu_service_libs.redis_server import RedisServer
from huleedu_service_libs.testing.polling import until
from tests.fault.unread_answers import unread_answers
from tests.functional.result_aggregator import ResultAggregator
from tests.gateway_process import GatewayProcess
from tests.service_process import token

CIRCUIT_STATE = 'gateway_circuit_breaker_state{service="result_aggregator_service"}'
UNCHECKED = "gateway_rate_limits_unchecked_total"
FAILURES = 3
SETTINGS = {
    "API_GATEWAY_RATE_LIMIT_REQUESTS": "1000",
    "API_GATEWAY_HTTP_CLIENT_TIMEOUT_SECONDS": "1",
    "API_GATEWAY_CIRCUIT_BREAKER_FAILURES": str(FAILURES),
    "API_GATEWAY_CIRCUIT_BREAKER_RECOVERY_SECONDS": "2",
    "API_GATEWAY_REDIS_TIMEOUT_SECONDS": "0.5",
}


@pytest.fixture
async def aggregator() -> AsyncIterator[ResultAggregator]:
    async with ResultAggregator() as server:
        yield server


@pytest.fixture
async def gateway(
    redis_server: RedisServer, aggregator: ResultAggregator
) -> AsyncIterator[GatewayProcess]:
    async with GatewayProcess(
        redis_url=redis_server.url, aggregator_url=aggregator.origin, settings=SETTINGS
    ) as process:
        yield process


async def ask(gateway: GatewayProcess) -> tuple[int, str]:
    """Status and error code, which is empty where there was none."""
    status, _, body = await gateway.batch_status()
    return status, "" if status == 200 else json.loads(body)["error"]["code"]


async def answers(gateway: GatewayProcess, wanted: int) -> None:
    async def came() -> bool:
        return (await gateway.batch_status())[0] == wanted

    await until(came)


async def circuit_is(gateway: GatewayProcess, state: int) -> None:
    async def came() -> bool:
        return (await gateway.metrics())[CIRCUIT_STATE] == state

    await until(came)


async def is_counting(gateway: GatewayProcess) -> bool:
    """Whether requests are counted now."""
    _, headers, _ = await gateway.batch_status()
    return headers["x-ratelimit-remaining"] != headers["x-ratelimit-limit"]


async def counts(gateway: GatewayProcess) -> None:
    """Return once they are."""
    await until(lambda: is_counting(gateway))


FAILED = (502, "EXTERNAL_SERVICE_ERROR")
NOT_ASKED = (503, "CIRCUIT_BREAKER_OPEN")


async def test_an_aggregator_that_fails_is_left_alone(
    gateway: GatewayProcess, aggregator: ResultAggregator
) -> None:
    """After some failures in a row it is not asked for a while, and clients are told how long."""
    aggregator.answer(b"", status="500 Internal Server Error")
    assert [await ask(gateway) for _ in range(FAILURES)] == [FAILED] * FAILURES
    status, headers, body = await gateway.batch_status()
    assert (status, json.loads(body)["error"]["code"]) == NOT_ASKED
    assert headers["retry-after"] in {"1", "2"}
    assert aggregator.requests == FAILURES
    aggregator.batch()
    await answers(gateway, 200)
    assert [await ask(gateway) for _ in range(3)] == [(200, "")] * 3
    assert (await gateway.metrics())[CIRCUIT_STATE] == 0


async def test_an_aggregator_that_comes_back_is_not_overrun(
    gateway: GatewayProcess, aggregator: ResultAggregator
) -> None:
    """Of many who ask once it may be tried again, one waits for it, and the others for nothing."""
    await aggregator.go_away()
    assert [await ask(gateway) for _ in range(FAILURES)] == [FAILED] * FAILURES
    assert (await gateway.metrics())[CIRCUIT_STATE] == 2
    await aggregator.come_back()
    aggregator.hang()
    await circuit_is(gateway, 1)
    results = await asyncio.gather(*(ask(gateway) for _ in range(20)))
    assert Counter(results) == {(504, "TIMEOUT"): 1, NOT_ASKED: 19}
    assert aggregator.requests == 1
    aggregator.batch()
    await answers(gateway, 200)


async def test_answers_are_no_failures(
    gateway: GatewayProcess, aggregator: ResultAggregator
) -> None:
    """Batches that do not exist, are someone else's or make no sense hide nobody else's."""
    for _ in range(2 * FAILURES):
        aggregator.answer(b"", status="404 Not Found")
        assert (await ask(gateway))[0] == 404
    for _ in range(2 * FAILURES):
        aggregator.batch(user_id="teacher-2")
        assert (await ask(gateway))[0] == 403
    for _ in range(2 * FAILURES):
        aggregator.answer(b"garbage")
        assert (await ask(gateway))[0] == 502
    aggregator.batch()
    assert (await ask(gateway))[0] == 200


async def test_a_slow_aggregator_is_left_alone(
    gateway: GatewayProcess, aggregator: ResultAggregator
) -> None:
    """Clients do not wait for an aggregator that hangs, once enough of them have."""
    aggregator.hang()
    results = await asyncio.gather(*(ask(gateway) for _ in range(FAILURES)))
    assert results == [(504, "TIMEOUT")] * FAILURES
    assert await ask(gateway) == NOT_ASKED
    aggregator.batch()
    await answers(gateway, 200)


async def test_an_aggregator_dies_while_it_answers(
    gateway: GatewayProcess, aggregator: ResultAggregator
) -> None:
    """A question that is on its way when the aggregator dies fails, and the next one is served."""
    for stop in (aggregator.hang, lambda: aggregator.stall(b'{"user_id": "teacher-1", ')):
        stop()
        asked = aggregator.requests
        question = asyncio.create_task(ask(gateway))
        await aggregator.asked(asked + 1)
        await aggregator.go_away()
        assert await question == FAILED
        await aggregator.come_back()
        aggregator.batch()
        assert await ask(gateway) == (200, "")


async def test_without_redis_nobody_is_refused(
    gateway: GatewayProcess, redis_server: RedisServer
) -> None:
    """While Redis is away requests are served uncounted, which is logged once; then they count."""
    assert await is_counting(gateway)
    before = (await gateway.metrics())[UNCHECKED]
    await redis_server.kill()
    statuses = [(await gateway.batch_status())[0] for _ in range(10)]
    assert statuses == [200] * 10
    assert (await gateway.metrics())[UNCHECKED] == before + 10
    await redis_server.launch()
    await counts(gateway)
    log = gateway.output()
    assert log.count("requests are not limited: Redis is away") == 1
    assert log.count("requests are limited again") == 1


async def test_a_redis_that_hangs_holds_up_nobody_for_long(
    gateway: GatewayProcess, redis_server: RedisServer
) -> None:
    """Requests are served while Redis does not answer: many at once, and one after the other."""
    assert await is_counting(gateway)
    redis_server.signal(signal.SIGSTOP)
    try:
        results = await asyncio.gather(*(ask(gateway) for _ in range(20)))
        results += [await ask(gateway) for _ in range(20)]
    finally:
        redis_server.signal(signal.SIGCONT)
    assert results == [(200, "")] * 40
    await counts(gateway)
    assert gateway.output().count("requests are not limited: Redis is away") == 1


async def test_redis_is_away_from_the_beginning(aggregator: ResultAggregator) -> None:
    """A gateway starts without Redis, and serves."""
    async with GatewayProcess(aggregator_url=aggregator.origin, settings=SETTINGS) as gateway:
        assert await ask(gateway) == (200, "")
        assert not await is_counting(gateway)


async def test_a_redis_restarted_empty(gateway: GatewayProcess, redis_server: RedisServer) -> None:
    """Counting goes on with a Redis that has forgotten everything, scripts included."""
    assert await is_counting(gateway)
    await redis_server.terminate()
    await redis_server.launch()
    await counts(gateway)


async def test_a_client_that_does_not_read_is_not_waited_for(aggregator: ResultAggregator) -> None:
    """The gateway ends in good order while somebody has asked for much, and takes nothing of it."""
    aggregator.batch(essays="x" * 3_900_000)
    request = (
        "GET /v1/batches/batch-1/status HTTP/1.1\r\nHost: localhost\r\n"
        f"Authorization: Bearer {token('teacher-1')}\r\n\r\n"
    )
    settings = {"API_GATEWAY_LOG_LEVEL": "INFO", "API_GATEWAY_SHUTDOWN_TIMEOUT_SECONDS": "1"}
    async with (
        GatewayProcess(aggregator_url=aggregator.origin, settings=settings) as gateway,
        unread_answers(gateway, request.encode()),
    ):
        assert await gateway.terminate() == 0
        assert "service stopped" in gateway.output()
        assert "Traceback" not in gateway.output()
