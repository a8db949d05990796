"""What the service says to those who come without a WebSocket."""

import asyncio
import json
import time
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from huleedu_service_libs.redis_server import RedisServer
from tests.functional.closes import assert_public_error, closed
from tests.functional.raw_websocket import UPGRADE, raw_websocket
from tests.service_process import ServiceProcess, token

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATHS = ["/healthz", "/readyz", "/healthz/redis", "/healthz/websocket", "/metrics"]
ERRORS = [
    ("GET", "/ws", 426, "INVALID_REQUEST"),
    ("GET", "/ws/", 426, "INVALID_REQUEST"),
    ("GET", "/ws?token=x", 426, "INVALID_REQUEST"),
    ("GET", "/", 404, "RESOURCE_NOT_FOUND"),
    ("GET", "/nowhere", 404, "RESOURCE_NOT_FOUND"),
    ("POST", "/nowhere", 404, "RESOURCE_NOT_FOUND"),
    ("GET", "/ws/more", 404, "RESOURCE_NOT_FOUND"),
    ("GET", "/static/x", 404, "RESOURCE_NOT_FOUND"),
    ("GET", "/%ff%00", 404, "RESOURCE_NOT_FOUND"),
    ("GET", "/ws//", 404, "RESOURCE_NOT_FOUND"),
    ("GET", "//ws", 426, "INVALID_REQUEST"),
    ("GET", "//evil.example.org/ws", 404, "RESOURCE_NOT_FOUND"),
    ("GET", "/healthz/", 404, "RESOURCE_NOT_FOUND"),
    ("GET", "/healthz//redis", 404, "RESOURCE_NOT_FOUND"),
    ("POST", "/v1//tickets", 404, "RESOURCE_NOT_FOUND"),
    ("POST", "/ws", 405, "INVALID_REQUEST"),
    ("PUT", "/ws/", 405, "INVALID_REQUEST"),
    ("DELETE", "/ws", 405, "INVALID_REQUEST"),
    *(("POST", path, 405, "INVALID_REQUEST") for path in PATHS),
]


def error_of(body: bytes, code: str) -> dict[str, Any]:
    """The error in a response's body, checked for completeness."""
    parsed = json.loads(body)
    assert parsed.keys() == {"error"}
    error: dict[str, Any] = parsed["error"]
    assert_public_error(error, code)
    assert datetime.fromisoformat(error["timestamp"]).utcoffset() is not None
    return error


@pytest.mark.parametrize(("method", "path", "status", "code"), ERRORS)
async def test_an_error_has_the_public_body_and_the_correlation_id_that_was_sent(
    service: ServiceProcess, method: str, path: str, status: int, code: str
) -> None:
    """426, 404 and 405 wear the same body, and echo the caller's correlation id."""
    sent = str(uuid4())
    answered, headers, body = await service.http(
        path, method=method, headers={"X-Correlation-ID": sent}
    )
    assert answered == status
    assert headers["content-type"] == "application/json"
    assert headers["x-correlation-id"] == sent
    assert error_of(body, code)["correlation_id"] == sent


@pytest.mark.parametrize(("method", "path", "status", "code"), ERRORS)
@pytest.mark.parametrize("sent", [None, "", "mine", "<script>", "0" * 31, "é"])
async def test_a_correlation_id_is_made_where_none_is_sent(
    service: ServiceProcess, method: str, path: str, status: int, code: str, sent: str | None
) -> None:
    """What is no UUID is not echoed: header and body have a fresh id, the same in both."""
    given = {} if sent is None else {"X-Correlation-ID": sent}
    answered, headers, body = await service.http(path, method=method, headers=given)
    assert answered == status
    correlation_id = error_of(body, code)["correlation_id"]
    assert headers["x-correlation-id"] == correlation_id
    assert str(UUID(correlation_id)) == correlation_id


@pytest.mark.parametrize(
    ("request_line", "status", "code"),
    [
        ("GET /nowhere HTTP/1.1", 404, "RESOURCE_NOT_FOUND"),
        ("GET /ws/more?token=x HTTP/1.1", 404, "RESOURCE_NOT_FOUND"),
        ("GET /ws// HTTP/1.1", 404, "RESOURCE_NOT_FOUND"),
        ("GET //ws HTTP/1.1", 404, "RESOURCE_NOT_FOUND"),
        ("GET http://evil.example.org//ws HTTP/1.1", 404, "RESOURCE_NOT_FOUND"),
        ("POST /nowhere HTTP/1.1", 404, "RESOURCE_NOT_FOUND"),
        ("POST /ws HTTP/1.1", 405, "INVALID_REQUEST"),
        ("PUT /ws/ HTTP/1.1", 405, "INVALID_REQUEST"),
        ("POST /healthz HTTP/1.1", 405, "INVALID_REQUEST"),
        ("GET /healthz HTTP/1.1", 404, "RESOURCE_NOT_FOUND"),
    ],
)
async def test_an_upgrade_to_nowhere_has_the_public_body_too(
    service: ServiceProcess, request_line: str, status: int, code: str
) -> None:
    """A WebSocket handshake that no route takes is answered like any other request."""
    sent = str(uuid4())
    async with raw_websocket(
        service.port,
        token=token(),
        request_line=request_line,
        headers=[("X-Correlation-ID", sent)],
    ) as client:
        assert client.status == status
        assert client.headers["x-correlation-id"] == sent
        assert error_of(await client.body(), code)["correlation_id"] == sent


async def test_the_426_says_what_to_upgrade_to(service: ServiceProcess) -> None:
    """As HTTP demands, a 426 names the protocol, and a 405 the methods."""
    _, headers, _ = await service.http("/ws")
    assert headers["upgrade"] == "websocket"
    _, headers, _ = await service.http("/ws", method="POST")
    assert "GET" in headers["allow"]


@pytest.mark.parametrize("missing", [name for name, _ in UPGRADE if name.startswith("Sec")])
async def test_half_a_handshake_is_answered(service: ServiceProcess, missing: str) -> None:
    """An upgrade that lacks a header of RFC 6455 gets a 4xx, not silence."""
    headers = {name: value for name, value in UPGRADE if name != missing}
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    lines = ["GET /ws HTTP/1.1", "Host: x", *(f"{n}: {v}" for n, v in headers.items()), "", ""]
    writer.write("\r\n".join(lines).encode())
    status = int((await reader.readline()).split()[1])
    writer.close()
    await writer.wait_closed()
    assert 400 <= status < 500


async def test_the_path_may_end_with_a_slash(service: ServiceProcess, redis: Redis) -> None:
    """`/ws/` is `/ws`."""
    async with raw_websocket(service.port, target=f"/ws/?token={token()}") as client:
        assert client.status == 101
        assert await redis.publish("ws:teacher-1", "{}") == 1
        assert (await client.receive()).payload == b"{}"


async def test_healthz_says_that_the_process_is_alive(service: ServiceProcess) -> None:
    """Liveness: name, environment, clock and uptime."""
    status, headers, body = await service.http("/healthz")
    health = json.loads(body)
    assert status == 200
    assert headers["content-type"] == "application/json"
    assert health.keys() == {
        "service",
        "status",
        "message",
        "environment",
        "timestamp",
        "uptime_seconds",
    }
    assert health["service"] == "websocket_service"
    assert health["status"] == "healthy"
    assert health["environment"] == "development"
    assert datetime.fromisoformat(health["timestamp"]).utcoffset() is not None
    assert 0 <= health["uptime_seconds"] < time.monotonic()


async def test_readyz_has_a_word_on_each_dependency(service: ServiceProcess) -> None:
    """Readiness: Redis, the drain, the node's limit."""
    status, _, body = await service.http("/readyz")
    readiness = json.loads(body)
    assert status == 200
    assert readiness["service"] == "websocket_service"
    assert readiness["status"] == "ready"
    assert {"redis", "draining", "capacity"} <= readiness["checks"].keys()


async def test_redis_health(service: ServiceProcess) -> None:
    """Redis answers, so its check does."""
    status, _, body = await service.http("/healthz/redis")
    assert status == 200
    assert json.loads(body)["status"] == "healthy"


async def test_health_without_redis() -> None:
    """Without Redis: alive, not ready, and a 503 with the error body, id and all."""
    async with RedisServer() as server:
        url = server.url
    sent = str(uuid4())
    async with ServiceProcess(url, ready_status=503) as lonely:
        assert (await lonely.http("/healthz"))[0] == 200
        status, headers, body = await lonely.http(
            "/healthz/redis", headers={"X-Correlation-ID": sent}
        )
        assert status == 503
        assert headers["x-correlation-id"] == sent
        assert error_of(body, "SERVICE_UNAVAILABLE")["correlation_id"] == sent
        assert url.removeprefix("redis://") not in body.decode()
        async with lonely.connect() as client:
            close = await closed(client)
        assert (close.code, close.reason["error_code"]) == (1013, "CONNECTION_ERROR")
        assert close.reason["retry_after_ms"] > 0


@pytest_asyncio.fixture(loop_scope="module")
async def idle_service(service: ServiceProcess) -> ServiceProcess:
    """The service once it has seen the last of the tests before."""
    while (await service.metrics())["websocket_connections"]:
        pass
    return service


async def test_websocket_health_counts_connections(idle_service: ServiceProcess) -> None:
    """How many connections there are now, and how many a user may have."""
    async with idle_service.connect("a"), idle_service.connect("a"), idle_service.connect("b"):
        status, _, body = await idle_service.http("/healthz/websocket")
    assert status == 200
    assert json.loads(body) == {
        "service": "websocket_manager",
        "status": "healthy",
        "total_connections": 3,
        "max_connections_per_user": 5,
    }


async def test_metrics_are_prometheus_text_without_users(
    idle_service: ServiceProcess, redis: Redis
) -> None:
    """The metrics parse, count what was done, and name nobody."""
    user = "a-name-that-occurs-nowhere-else"
    async with idle_service.connect(user) as tab:
        assert await redis.publish(f"ws:{user}", "{}") == 1
        await tab.recv()
        async with idle_service.connect(user, bearer=token(user, exp=0)) as refused:
            await closed(refused)
        status, headers, body = await idle_service.http("/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain")
    assert user not in body.decode()
    families = {family.name: family for family in text_string_to_metric_families(body.decode())}
    labels = {
        name
        for family in families.values()
        for sample in family.samples
        for name in sample.labels
        if family.name.startswith("websocket")
    }
    assert labels <= {"dialect", "code", "reason", "result", "le"}
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in families.values()
        for sample in family.samples
    }
    assert samples["websocket_connections",] == 1
    assert samples["websocket_connections_opened_total", "plain"] >= 1
    assert samples["websocket_handshakes_refused_total", "token_expired"] == 1
    assert samples["websocket_token_checks_total", "token_expired"] == 1
    assert samples["websocket_token_checks_total", "valid"] >= 1
    assert samples["websocket_deliveries_total",] >= 1
    assert samples["websocket_delivered_bytes_total",] >= 2
    assert samples["websocket_publish_to_write_seconds_count",] >= 1
