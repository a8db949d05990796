"""What the gateway has enough of: requests of one user, and bytes of one request."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from huleedu_service_libs.redis_server import RedisServer
from tests.functional.result_aggregator import ResultAggregator
from tests.gateway_process import GatewayProcess, error_of
from tests.service_process import token

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIMIT = 5
MAX_BYTES = 10_000
MEGABYTE = b" " * 1_000_000
PIPELINES = "/v1/batches/batch-1/pipelines"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def aggregator() -> AsyncIterator[ResultAggregator]:
    async with ResultAggregator() as server:
        yield server


@asynccontextmanager
async def gateway_with(
    redis_server: RedisServer, aggregator: ResultAggregator, **settings: int
) -> AsyncIterator[GatewayProcess]:
    async with GatewayProcess(
        redis_url=redis_server.url,
        aggregator_url=aggregator.origin,
        settings={f"API_GATEWAY_{name}": str(value) for name, value in settings.items()},
    ) as process:
        yield process


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateways(
    redis_server: RedisServer, aggregator: ResultAggregator
) -> AsyncIterator[list[GatewayProcess]]:
    """Two that share a Redis."""
    one = gateway_with(
        redis_server, aggregator, RATE_LIMIT_REQUESTS=LIMIT, MAX_REQUEST_BYTES=MAX_BYTES
    )
    other = gateway_with(
        redis_server, aggregator, RATE_LIMIT_REQUESTS=LIMIT, MAX_REQUEST_BYTES=MAX_BYTES
    )
    async with one as first, other as second:
        yield [first, second]


@pytest.fixture
def gateway(gateways: list[GatewayProcess]) -> GatewayProcess:
    return gateways[0]


# Requests of one user


async def test_exactly_the_limit_over_all_gateways(
    gateways: list[GatewayProcess], aggregator: ResultAggregator
) -> None:
    """Of many requests that a user makes at once, exactly as many as the limit get through."""
    aggregator.batch()
    answers = await asyncio.gather(
        *(gateways[i % 2].batch_status(user="teacher-1") for i in range(6 * LIMIT))
    )
    assert Counter(code for code, _, _ in answers) == {200: LIMIT, 429: 5 * LIMIT}
    left = [headers["x-ratelimit-remaining"] for code, headers, _ in answers if code == 200]
    assert sorted(left) == [str(n) for n in range(LIMIT)]


async def test_every_answer_says_what_is_left(
    gateway: GatewayProcess, aggregator: ResultAggregator
) -> None:
    """A client sees with each answer how many requests it has left, and when there are more."""
    for left in range(LIMIT - 1, -1, -1):
        _, headers, _ = await gateway.batch_status(user="teacher-2")
        assert headers["x-ratelimit-limit"] == str(LIMIT)
        assert headers["x-ratelimit-remaining"] == str(left)
        assert 0 < int(headers["x-ratelimit-reset"]) <= 60
    asked = aggregator.requests
    code, headers, body = await gateway.batch_status(user="teacher-2")
    error = error_of(body)
    assert (code, error["code"]) == (429, "RATE_LIMIT")
    assert error["details"] == {"limit": LIMIT, "window_seconds": 60}
    assert error["correlation_id"] == headers["x-correlation-id"]
    assert 0 < int(headers["retry-after"]) <= 60
    assert headers["x-ratelimit-remaining"] == "0"
    assert aggregator.requests == asked


async def test_commands_and_questions_count_together(gateway: GatewayProcess) -> None:
    """The limit is the user's, whatever they ask for."""
    for _ in range(LIMIT):
        await gateway.batch_status(user="teacher-3")
    code, _, body = await gateway.request_pipeline(user="teacher-3")
    assert (code, error_of(body)["code"]) == (429, "RATE_LIMIT")


async def test_users_do_not_count_for_each_other(gateway: GatewayProcess) -> None:
    """One user's limit is none of another's, however much their ids look alike."""
    users = [
        "teacher",
        "teacher:4",
        "teacher 4",
        "teacher{4}",
        "teacher\r\n4",
        "TEACHER",
        "läärare",
    ]
    for _ in range(LIMIT):
        await gateway.batch_status(user="teacher-4")
    assert (await gateway.batch_status(user="teacher-4"))[0] == 429
    for user in users:
        _, headers, _ = await gateway.batch_status(user=user)
        assert headers["x-ratelimit-remaining"] == str(LIMIT - 1)


async def test_who_is_not_limited(gateway: GatewayProcess) -> None:
    """Probes are never refused, and a stranger's requests are not counted as anybody's."""
    expired = {"Authorization": f"Bearer {token('teacher-5', exp=1)}"}
    for _ in range(2 * LIMIT):
        assert (await gateway.http("/healthz"))[0] == 200
        assert (await gateway.http("/v1/batches/b/status", headers=expired))[0] == 401
    _, headers, _ = await gateway.batch_status(user="teacher-5")
    assert headers["x-ratelimit-remaining"] == str(LIMIT - 1)


async def test_redis_knows_no_names(gateway: GatewayProcess, redis: Redis) -> None:
    """Redis holds neither ids nor tokens of those who are counted, and forgets them."""
    await gateway.batch_status(user="teacher-6")
    keys = [key async for key in redis.scan_iter()]
    assert keys
    for key in keys:
        assert b"teacher" not in key
        assert 0 < await redis.pttl(key) <= 60_000


async def test_a_limit_comes_to_an_end(
    redis_server: RedisServer, aggregator: ResultAggregator
) -> None:
    """Who was refused gets through again after a while, though they kept on asking."""
    aggregator.batch(user_id="teacher-7")
    async with (
        gateway_with(
            redis_server, aggregator, RATE_LIMIT_REQUESTS=2, RATE_LIMIT_WINDOW=3
        ) as gateway,
        asyncio.timeout(20),
    ):
        answers = await asyncio.gather(*(gateway.batch_status(user="teacher-7") for _ in range(4)))
        assert sorted(code for code, _, _ in answers) == [200, 200, 429, 429]
        assert {headers.get("retry-after") for _, headers, _ in answers} <= {None, "1", "2", "3"}
        while (await gateway.batch_status(user="teacher-7"))[0] == 429:
            pass


# Bytes of one request


def head(*fields: str, bearer: str | None = None, path: str = PIPELINES) -> bytes:
    """Of a POST, without its body."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *fields]
    if bearer is not None:
        lines.append(f"Authorization: Bearer {bearer}")
    return "\r\n".join([*lines, "", ""]).encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def check_too_large(code: int, headers: dict[str, str], body: bytes) -> None:
    error = error_of(body)
    assert (code, error["code"]) == (413, "INVALID_REQUEST")
    assert error["message"] == f"The body has more than {MAX_BYTES} bytes"
    assert error["correlation_id"] == headers["x-correlation-id"]


@pytest.mark.parametrize("user", ["teacher-11", None])
async def test_a_large_body_is_refused(gateway: GatewayProcess, user: str | None) -> None:
    """Who announces too much is refused, whoever they are."""
    bearer = None if user is None else token(user)
    request = head(f"Content-Length: {MAX_BYTES + 1}", "Connection: close", bearer=bearer)
    check_too_large(*await gateway.raw_http(request + b" " * (MAX_BYTES + 1)))


async def test_a_body_without_a_length_is_counted(gateway: GatewayProcess) -> None:
    """A body that never says how long it is gets as far as the limit."""
    request = head("Transfer-Encoding: chunked", "Connection: close", bearer=token("teacher-12"))
    chunks = [chunk(b" " * (MAX_BYTES // 10))] * 11
    check_too_large(*await gateway.raw_http(b"".join([request, *chunks, chunk(b"")])))


async def test_bodies_that_are_too_large_are_counted(gateway: GatewayProcess) -> None:
    """However it came out that a body is too large, it is an error of its route."""
    endpoint = "/v1/batches/{batch_id}/pipelines"
    counter = f'gateway_api_errors_total{{endpoint="{endpoint}",error_code="INVALID_REQUEST"}}'
    before = (await gateway.metrics()).get(counter, 0)
    for length in (f"Content-Length: {MAX_BYTES + 1}", "Transfer-Encoding: chunked"):
        request = head(length, "Connection: close", bearer=token("teacher-16"))
        body = b" " * (MAX_BYTES + 1)
        check_too_large(
            *await gateway.raw_http(request + (chunk(body) if "chunked" in length else body))
        )
    assert (await gateway.metrics())[counter] == before + 2


async def test_the_limit_itself_is_allowed(gateway: GatewayProcess) -> None:
    """A body of exactly as many bytes as may be is read, with a length and without."""
    body = b"{}".ljust(MAX_BYTES)
    bearer = token("teacher-13")
    plain = head(f"Content-Length: {MAX_BYTES}", "Connection: close", bearer=bearer) + body
    chunked = head("Transfer-Encoding: chunked", "Connection: close", bearer=bearer)
    for request in (plain, chunked + chunk(body[:7]) + chunk(body[7:]) + chunk(b"")):
        code, _, answer = await gateway.raw_http(request)
        assert (code, error_of(answer)["code"]) == (422, "VALIDATION_ERROR")


@pytest.mark.parametrize(
    ("fields", "bearer", "code"),
    [
        ("Content-Length: 20000000", token("teacher-14"), 413),
        ("Transfer-Encoding: chunked", token("teacher-14"), 413),
        ("Transfer-Encoding: chunked", None, 401),
        ("Transfer-Encoding: chunked", token(exp=1), 401),
    ],
    ids=["announced", "counted", "a stranger", "a late comer"],
)
async def test_who_sends_everything_first_gets_the_answer(
    gateway: GatewayProcess, fields: str, bearer: str | None, code: int
) -> None:
    """A client that reads only after it has sent everything learns why it was refused."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    try:
        writer.write(head(fields, "Connection: close", bearer=bearer))
        for _ in range(20):
            writer.write(MEGABYTE if "Length" in fields else chunk(MEGABYTE))
            await writer.drain()
        if "chunked" in fields:
            writer.write(chunk(b""))
        answer_head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
        await writer.wait_closed()
    assert int(answer_head.split()[1]) == code
    assert error_of(body)["message"]


async def test_the_answer_does_not_wait_for_the_body(gateway: GatewayProcess) -> None:
    """A client that looks up while it sends finds the answer there."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    try:
        writer.write(head("Content-Length: 1000000000"))
        answer_head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.partition(b":")[2])
            for line in answer_head.splitlines()
            if line.lower().startswith(b"content-length")
        )
        error = error_of(await reader.readexactly(length))
    finally:
        writer.close()
        await writer.wait_closed()
    assert error["code"] == "INVALID_REQUEST"


async def test_nobody_is_waited_for_without_end(gateway: GatewayProcess) -> None:
    """A client that was refused and neither sends nor leaves is disconnected."""
    check_too_large(*await gateway.raw_http(head("Content-Length: 1000000000") + b"{"))
    assert (await gateway.http("/healthz"))[0] == 200
