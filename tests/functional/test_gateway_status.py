"""Asking the gateway how far a batch is: what its owner is told, and what nobody is."""

import json
from collections.abc import AsyncIterator, Callable
from uuid import UUID, uuid4

import pytest
import pytest_asyncio

from huleedu_service_libs.redis_server import RedisServer
from tests.functional.collector import attributes, collector
from tests.functional.result_aggregator import ResultAggregator
from tests.gateway_process import INTERNAL_API_KEY, NOWHERE, GatewayProcess, error_of
from tests.service_process import token

pytestmark = pytest.mark.asyncio(loop_scope="module")

ENDPOINT = "/internal/v1/batches/{batch_id}/status"
SERVICE = "result_aggregator_service"
CALLS = "gateway_downstream_service_calls_total"
SETTINGS = {
    "API_GATEWAY_RATE_LIMIT_REQUESTS": "1000",
    "API_GATEWAY_HTTP_CLIENT_TIMEOUT_SECONDS": "0.5",
    # What happens when there are many in a row is another matter.
    "API_GATEWAY_CIRCUIT_BREAKER_FAILURES": "1000",
}
# Services do not talk to each other through the proxies of their surroundings.
PROXIES = {"HTTP_PROXY": f"http://{NOWHERE}", "ALL_PROXY": f"http://{NOWHERE}"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def all_of_aggregator() -> AsyncIterator[ResultAggregator]:
    """A stand-in that the module has to itself."""
    async with ResultAggregator() as server:
        yield server


@pytest_asyncio.fixture(loop_scope="module")
async def aggregator(all_of_aggregator: ResultAggregator) -> ResultAggregator:
    """The same, with a batch of teacher-1 in it."""
    await all_of_aggregator.come_back()
    all_of_aggregator.batch()
    return all_of_aggregator


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    all_of_aggregator: ResultAggregator, redis_server: RedisServer
) -> AsyncIterator[GatewayProcess]:
    """The gateway in front of it."""
    async with GatewayProcess(
        redis_url=redis_server.url,
        aggregator_url=all_of_aggregator.origin,
        settings={**SETTINGS, **PROXIES},
    ) as process:
        yield process


def calls_with(status_code: str) -> str:
    """The sample that counts them."""
    labels = f'endpoint="{ENDPOINT}",method="GET",service="{SERVICE}",status_code="{status_code}"'
    return f"{CALLS}{{{labels}}}"


async def calls(gateway: GatewayProcess, status_code: str) -> float:
    """How many there have been so far."""
    return (await gateway.metrics()).get(calls_with(status_code), 0)


@pytest.mark.parametrize(
    ("overall_status", "status"),
    [
        ("awaiting_content_validation", "pending_content"),
        ("ready_for_pipeline_execution", "ready"),
        ("validation_timeout_processed", "processing"),
        ("completed_successfully", "completed_successfully"),
        ("completed_with_failures", "completed_with_failures"),
        ("failed_critically", "failed"),
        ("cancelled", "cancelled"),
    ],
)
async def test_owner_sees_how_far_a_batch_is(
    gateway: GatewayProcess, aggregator: ResultAggregator, overall_status: str, status: str
) -> None:
    """A teacher is told the status of a batch in words that clients know, and all details."""
    aggregator.batch(overall_status, batch_id="batch-7", essays=[{"id": "e-1", "score": 0.5}])
    code, headers, body = await gateway.batch_status("batch-7")
    assert (code, headers["content-type"]) == (200, "application/json")
    assert json.loads(body) == {
        "status": status,
        "details": {
            "overall_status": overall_status,
            "batch_id": "batch-7",
            "essays": [{"id": "e-1", "score": 0.5}],
        },
    }
    assert aggregator.last_target == "/internal/v1/batches/batch-7/status"


async def test_details_name_no_user(gateway: GatewayProcess, aggregator: ResultAggregator) -> None:
    """Nothing that the client gets says whose a batch is, however deep it stands."""
    aggregator.batch(runs=[{"user_id": "teacher-1", "phase": "nlp"}])
    code, _, body = await gateway.batch_status()
    assert code == 200
    assert json.loads(body)["details"]["runs"] == [{"phase": "nlp"}]
    assert b"teacher-1" not in body
    assert b"user_id" not in body


async def test_the_aggregator_is_told_who_asks(
    gateway: GatewayProcess, aggregator: ResultAggregator
) -> None:
    """The aggregator gets the gateway's key and name and the request's ids, but not its token."""
    correlation_id, trace_id = str(uuid4()), "0af7651916cd43dd8448eb211c80319c"
    code, headers, _ = await gateway.batch_status(
        headers={
            "X-Correlation-ID": correlation_id,
            "traceparent": f"00-{trace_id}-b7ad6b7169203331-01",
        }
    )
    assert (code, headers["x-correlation-id"]) == (200, correlation_id)
    sent = aggregator.last_headers
    assert sent["x-internal-api-key"] == INTERNAL_API_KEY
    assert sent["x-service-id"] == "api_gateway_service"
    assert sent["x-correlation-id"] == correlation_id
    assert sent["traceparent"].split("-")[1] == trace_id
    assert sent["traceparent"].split("-")[2] != "b7ad6b7169203331"
    assert "authorization" not in sent
    assert INTERNAL_API_KEY not in gateway.output()


async def test_a_correlation_id_is_made(
    gateway: GatewayProcess, aggregator: ResultAggregator
) -> None:
    """A client that sends no correlation id finds the aggregator's in its answer."""
    _, headers, _ = await gateway.batch_status()
    assert aggregator.last_headers["x-correlation-id"] == headers["x-correlation-id"]
    UUID(headers["x-correlation-id"])


@pytest.mark.parametrize(
    ("quoted", "asked"),
    [
        ("caf%C3%A9%20%231", "caf%C3%A9%20%231"),
        ("a%3Fadmin%3Dtrue", "a%3Fadmin%3Dtrue"),
        ("%252e%252e%252fsecrets", "%252e%252e%252fsecrets"),
        ("a;b", "a%3Bb"),
        ("...", "..."),
    ],
)
async def test_odd_ids_stay_ids(
    gateway: GatewayProcess, aggregator: ResultAggregator, quoted: str, asked: str
) -> None:
    """An id with special characters names a batch, and no other place of the aggregator."""
    code, _, _ = await gateway.batch_status(quoted)
    assert code == 200
    assert aggregator.last_target == f"/internal/v1/batches/{asked}/status"


@pytest.mark.parametrize(
    "quoted", ["..", "%2e%2e", ".", "a%2Fb", "a%5Cb", "%0d%0aHost:x", "x" * 129]
)
async def test_what_is_no_id_is_not_asked_for(
    gateway: GatewayProcess, aggregator: ResultAggregator, quoted: str
) -> None:
    """What would lead somewhere else is refused before anybody is asked."""
    before = aggregator.requests
    code, _, body = await gateway.batch_status(quoted)
    assert code in {404, 422}
    error_of(body)
    assert aggregator.requests == before


async def test_strangers_are_not_told(
    gateway: GatewayProcess, aggregator: ResultAggregator
) -> None:
    """Without a good token nobody is told anything, and the aggregator is not asked."""
    before = aggregator.requests
    for headers in ({}, {"Authorization": f"Bearer {token(exp=1)}"}):
        code, answer, body = await gateway.http("/v1/batches/batch-1/status", headers=headers)
        assert (code, error_of(body)["code"]) == (401, "AUTHENTICATION_ERROR")
        assert answer["www-authenticate"] == "Bearer"
    assert aggregator.requests == before


async def test_someone_elses_batch(gateway: GatewayProcess, aggregator: ResultAggregator) -> None:
    """Someone else's batch is refused, without a word on whose or how far it is."""
    aggregator.batch(user_id="teacher-2", batch_id="batch-7")
    code, _, body = await gateway.batch_status("batch-7")
    assert (code, error_of(body)["code"]) == (403, "AUTHORIZATION_ERROR")
    assert b"teacher" not in body
    assert b"processing" not in body


async def test_an_unknown_status_of_someone_elses_batch(
    gateway: GatewayProcess, aggregator: ResultAggregator
) -> None:
    """A batch that nobody understands is the aggregator's failure, whoever asks."""
    aggregator.batch("half_done", user_id="teacher-2")
    code, _, body = await gateway.batch_status()
    assert (code, error_of(body)["code"]) == (502, "EXTERNAL_SERVICE_ERROR")
    assert b"half_done" not in body


async def test_no_such_batch(gateway: GatewayProcess, aggregator: ResultAggregator) -> None:
    """A batch that the aggregator does not know is not found."""
    aggregator.answer(b'{"detail": "no row in batches-table"}', status="404 Not Found")
    before = await calls(gateway, "404")
    code, headers, body = await gateway.batch_status("batch-9")
    error = error_of(body)
    assert (code, error["code"]) == (404, "RESOURCE_NOT_FOUND")
    assert error["details"] == {"resource_type": "Batch", "resource_id": "batch-9"}
    assert error["correlation_id"] == headers["x-correlation-id"]
    assert b"batches-table" not in body
    assert await calls(gateway, "404") == before + 1


@pytest.mark.parametrize(
    "status",
    [
        *("500 Internal Server Error", "503 Service Unavailable", "400 Bad Request"),
        *("401 Unauthorized", "403 Forbidden", "410 Gone", "429 Too Many Requests"),
        *("201 Created", "206 Partial Content"),
    ],
)
async def test_other_answers_are_failures(
    gateway: GatewayProcess, aggregator: ResultAggregator, status: str
) -> None:
    """Any other status is the aggregator's failure, and nothing that it says gets to the client."""
    body_of_batch = b'{"user_id": "teacher-1", "overall_status": "cancelled", "x": "inside-7"}'
    aggregator.answer(body_of_batch, status=status)
    before = await calls(gateway, status[:3])
    code, _, body = await gateway.batch_status()
    assert (code, error_of(body)["code"]) == (502, "EXTERNAL_SERVICE_ERROR")
    assert b"inside-7" not in body
    assert b"127.0.0.1" not in body
    assert await calls(gateway, status[:3]) == before + 1


@pytest.mark.parametrize("status", ["302 Found", "307 Temporary Redirect"])
async def test_redirects_are_not_followed(
    gateway: GatewayProcess, aggregator: ResultAggregator, status: str
) -> None:
    """An aggregator that sends us elsewhere is not followed there with our key."""
    async with ResultAggregator() as elsewhere:
        aggregator.answer(b"", status=status, headers={"Location": f"{elsewhere.origin}/"})
        code, _, body = await gateway.batch_status()
        assert (code, error_of(body)["code"]) == (502, "EXTERNAL_SERVICE_ERROR")
        assert elsewhere.requests == 0


@pytest.mark.parametrize(
    "body",
    [
        b"<html>inside-7</html>",
        b'["inside-7"]',
        b'{"user_id": "teacher-1", "inside-7": 7}',
        b'{"user_id": "teacher-1", "overall_status": "inside-7"}',
        b'{"user_id": "teacher-1", "overall_status": "cancelled", "inside-7": NaN}',
        b'{"user_id": "teacher-1", "overall_status": "cancelled", "x": "'
        + b"x" * 5_000_000
        + b'"}',
    ],
    ids=["html", "array", "no status", "unknown status", "not a number", "5 MB"],
)
async def test_garbage_is_a_failure(
    gateway: GatewayProcess, aggregator: ResultAggregator, body: bytes
) -> None:
    """An answer that makes no sense is the aggregator's failure, and none of it gets out."""
    aggregator.answer(body)
    before = await calls(gateway, "invalid_response")
    code, _, answer = await gateway.batch_status()
    assert (code, error_of(answer)["code"]) == (502, "EXTERNAL_SERVICE_ERROR")
    assert b"inside-7" not in answer
    assert await calls(gateway, "invalid_response") == before + 1


async def test_an_answer_without_end_is_not_kept(
    gateway: GatewayProcess, aggregator: ResultAggregator
) -> None:
    """A chunked answer that is too large is given up while it comes."""
    chunk = b"x" * 1_000_000
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for _ in range(8))
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    aggregator.say(head + chunks, closes=False)
    code, _, body = await gateway.batch_status()
    assert (code, error_of(body)["code"]) == (502, "EXTERNAL_SERVICE_ERROR")


@pytest.mark.parametrize(
    "reply", [b"", b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"]
)
async def test_no_http_is_a_failure(
    gateway: GatewayProcess, aggregator: ResultAggregator, reply: bytes
) -> None:
    """Whatever is no HTTP at all is the aggregator's failure."""
    aggregator.say(reply)
    code, _, body = await gateway.batch_status()
    assert (code, error_of(body)["code"]) == (502, "EXTERNAL_SERVICE_ERROR")


async def test_an_answer_that_breaks_off(
    gateway: GatewayProcess, aggregator: ResultAggregator
) -> None:
    """Half an answer is none, even where the half would do."""
    aggregator.break_off(b'{"user_id": "teacher-1", "overall_status": "cancelled"}')
    code, _, body = await gateway.batch_status()
    assert (code, error_of(body)["code"]) == (502, "EXTERNAL_SERVICE_ERROR")


async def test_nobody_there(gateway: GatewayProcess, aggregator: ResultAggregator) -> None:
    """While the aggregator is away, the client is told so, and not where it was looked for."""
    await aggregator.go_away()
    before = await calls(gateway, "connection_error")
    code, _, body = await gateway.batch_status()
    error = error_of(body)
    assert (code, error["code"]) == (502, "EXTERNAL_SERVICE_ERROR")
    assert error["details"] == {"external_service": SERVICE}
    assert str(aggregator.port).encode() not in body
    assert await calls(gateway, "connection_error") == before + 1
    await aggregator.come_back()
    assert (await gateway.batch_status())[0] == 200


BEGINNING = b'{"user_id": "teacher-1", "overall_status": "cancelled"}'


@pytest.mark.parametrize(
    "delay",
    [
        lambda server: server.hang(),
        lambda server: server.stall(BEGINNING),
        lambda server: server.drip(BEGINNING),
    ],
    ids=["no answer", "half an answer", "a byte at a time"],
)
async def test_a_slow_answer_is_a_timeout(
    gateway: GatewayProcess,
    aggregator: ResultAggregator,
    delay: Callable[[ResultAggregator], None],
) -> None:
    """No client waits longer than agreed, however the aggregator takes its time."""
    delay(aggregator)
    before = await calls(gateway, "timeout")
    code, _, body = await gateway.batch_status()
    error = error_of(body)
    assert (code, error["code"]) == (504, "TIMEOUT")
    assert error["details"] == {"timeout_seconds": 0.5}
    assert await calls(gateway, "timeout") == before + 1


async def test_cookies_stay_with_nobody(
    gateway: GatewayProcess, aggregator: ResultAggregator
) -> None:
    """A cookie that comes with one user's answer does not go along with another's question."""
    aggregator.answer(BEGINNING, headers={"Set-Cookie": "session=of-teacher-1; Path=/"})
    assert (await gateway.batch_status())[0] == 200
    aggregator.batch(user_id="teacher-2")
    assert (await gateway.batch_status(user="teacher-2"))[0] == 200
    assert "cookie" not in aggregator.last_headers


async def test_calls_are_measured(gateway: GatewayProcess, aggregator: ResultAggregator) -> None:
    """Operators see how often the aggregator was asked, with what result and how long it took."""
    duration = (
        "gateway_downstream_service_call_duration_seconds_count"
        f'{{endpoint="{ENDPOINT}",method="GET",service="{SERVICE}"}}'
    )
    await gateway.batch_status()
    before = await gateway.metrics()
    await gateway.batch_status()
    aggregator.batch(user_id="teacher-2")
    await gateway.batch_status()
    after = await gateway.metrics()
    assert after[calls_with("200")] == before[calls_with("200")] + 2
    assert after[duration] == before[duration] + 2
    assert after[f'gateway_circuit_breaker_state{{service="{SERVICE}"}}'] == 0


async def test_a_question_is_a_span(redis_server: RedisServer) -> None:
    """The trace of a request has a span for the question, with what it was and how it ended."""
    async with collector() as spans, ResultAggregator() as aggregator:
        aggregator.answer(b"", status="503 Service Unavailable")
        async with GatewayProcess(
            redis_url=redis_server.url,
            aggregator_url=aggregator.origin,
            settings={**SETTINGS, **spans.settings},
        ) as gateway:
            code, headers, _ = await gateway.batch_status()
            assert code == 502
            [span] = await spans.wait_for(lambda span: span.name == "gateway.proxy_request")
            await spans.wait_for(
                lambda other: (
                    other.trace_id == span.trace_id and other.kind == other.SPAN_KIND_SERVER
                )
            )
    shown = attributes(span)
    assert span.kind == span.SPAN_KIND_CLIENT
    assert shown["peer.service"] == SERVICE
    assert shown["http.request.method"] == "GET"
    assert shown["http.response.status_code"] == 503
    assert shown["correlation_id"] == headers["x-correlation-id"]
    assert span.status.code == span.status.STATUS_CODE_ERROR
    assert [event.name for event in span.events] == ["exception"]
    assert aggregator.last_headers["traceparent"].split("-")[2] == span.span_id.hex()
    assert INTERNAL_API_KEY not in spans.text()
