"""A credential is seen by nobody but who checks it: not in a log, a metric, a span or an error."""

import json
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote
from uuid import uuid4

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from huleedu_service_libs.redis_server import RedisServer
from tests.functional.closes import closed
from tests.functional.collector import Collector, collector
from tests.functional.raw_websocket import RawWebSocket, close_frame, raw_websocket
from tests.functional.tokens import BAD_TOKENS, WAYS, by_subprotocol_in_v1
from tests.service_process import HYPERCORN, ServiceProcess, token

pytestmark = pytest.mark.asyncio(loop_scope="module")

V1 = "huleedu.notify.v1"
# Every field of the request that can be logged, and all of its headers that could hold a token.
ACCESS_LOG_FORMAT = (
    'access: %(h)s "%(r)s" "%(R)s" "%(U)s" "%(Uq)s" "%(q)s" %(s)s %(st)s '
    "%({{authorization}}i)s %({{sec-websocket-protocol}}i)s %({{sec-websocket-protocol}}o)s "
    "%({{x-internal-api-key}}i)s %({{cookie}}i)s %({{proxy-authorization}}i)s %({{host}}i)s "
    "%({{x-original-url}}i)s %({{x-forwarded-uri}}i)s %({{x-rewrite-url}}i)s %(f)s %(a)s"
)
API_KEY: Final = "the-key-of-the-internal-api-in-these-tests"
DEV: Final = (
    str(Path(sys.executable).with_name("websocket-service")),
    *("dev", "--host", "127.0.0.1", "--port", "{port}"),
)
MIN_PART_LENGTH = 12


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def exported() -> AsyncIterator[Collector]:
    """What the service tells its tracing backend."""
    async with collector() as spans:
        yield spans


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(redis_server: RedisServer, exported: Collector) -> AsyncIterator[ServiceProcess]:
    """A service that writes down all it can."""
    command = [
        *HYPERCORN[:-1],
        *("--access-logfile", "-", "--access-logformat", ACCESS_LOG_FORMAT),
        *("--error-logfile", "-", "--log-level", "DEBUG"),
        *("--bind", "127.0.0.1:{port}"),
    ]
    settings = {
        "LOG_LEVEL": "DEBUG",
        "PYTHONASYNCIODEBUG": "1",
        "INTERNAL_API_KEY": API_KEY,
        "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST": ".*",
        "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_RESPONSE": ".*",
        **exported.settings,
    }
    async with ServiceProcess(redis_server.url, settings=settings, command=command) as process:
        yield process


async def written(service: ServiceProcess, *seen: str | bytes) -> str:
    """Whatever the service has let out: its output, its metrics, and what the client saw."""
    _, _, metrics = await service.http("/metrics")
    texts = [text.decode() if isinstance(text, bytes) else text for text in seen]
    return "\n".join([service.output(), metrics.decode(), *texts])


def assert_absent(bearer: str, text: str) -> None:
    """Neither the token nor one of its parts that says more than its algorithm is in the text."""
    _, *telling = bearer.split(".") if "." in bearer else ("", bearer)
    for part in (bearer, *telling):
        if len(part) >= MIN_PART_LENGTH:
            assert part not in text
            assert quote(part) not in text


async def leave(client: RawWebSocket) -> list[bytes]:
    """Close in good order; what came before the end."""
    await client.send(close_frame(1000))
    _, reason = await client.receive_close()
    return [reason.encode()]


@pytest.mark.parametrize("way", WAYS)
async def test_a_good_token_is_nowhere_to_be_seen(
    service: ServiceProcess, redis: Redis, way: str
) -> None:
    """A token that opened a connection is in no log line and no metric, however it came."""
    bearer = token(jti=f"good by {way}")
    async with WAYS[way](service, bearer) as client:
        assert await redis.publish("ws:teacher-1", "{}") == 1
        received = await client.recv()
    text = await written(service, received)
    assert "connection opened" in text
    assert "access: " in text
    assert_absent(bearer, text)


@pytest.mark.parametrize("way", [*WAYS, "v1"])
@pytest.mark.parametrize("wrong", sorted(name for name in BAD_TOKENS if "8 kB" not in name))
async def test_a_bad_token_is_nowhere_to_be_seen(
    service: ServiceProcess, wrong: str, way: str
) -> None:
    """Nor is a token that was refused, and the client does not read it back either."""
    bad, _ = BAD_TOKENS[wrong]
    async with {**WAYS, "v1": by_subprotocol_in_v1}[way](service, bad) as client:
        close = await closed(client)
    text = await written(service, *close.messages, json.dumps(close.reason))
    assert "handshake refused" in text
    assert_absent(bad, text)


@pytest.mark.parametrize(
    ("target", "headers"),
    [
        ("/ws?token={}", ()),
        ("/ws?%74oken={}", ()),
        ("/ws?a=b&token={}&token={}x&c=d", ()),
        ("/ws?token=x", (("Authorization", "Bearer {}"),)),
        ("/ws", (("Authorization", "bearer   {}"),)),
        ("/ws", (("Authorization", "Token {}"),)),
        ("/ws", (("Authorization", "{}"),)),
        ("/ws", (("Sec-WebSocket-Protocol", "bearer.{}"), ("Sec-WebSocket-Protocol", V1))),
        ("/ws", (("Sec-WebSocket-Protocol", f"chat ,\tbearer.{{}}, {V1}"),)),
        ("/ws", (("X-Correlation-ID", "{}"),)),
        ("/nowhere?token={}", (("Authorization", "Bearer {}"),)),
        ("/nowhere", (("Sec-WebSocket-Protocol", "bearer.{}"),)),
    ],
)
async def test_a_token_in_an_odd_place_is_nowhere_to_be_seen(
    service: ServiceProcess, target: str, headers: Sequence[tuple[str, str]]
) -> None:
    """Handshakes that are not quite right give nothing away either."""
    bearer = token(jti=str(uuid4()))
    async with raw_websocket(
        service.port,
        target=target.replace("{}", bearer),
        headers=[(name, value.replace("{}", bearer)) for name, value in headers],
    ) as client:
        seen = await leave(client) if client.status == 101 else [await client.body()]
    assert_absent(bearer, await written(service, *seen))


@pytest.mark.parametrize("path", ["/ws", "/nowhere", "/healthz", "/metrics", "/healthz/redis"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_token_in_a_plain_request_is_nowhere_to_be_seen(
    service: ServiceProcess, path: str, method: str
) -> None:
    """A token that is sent without an upgrade is not echoed and not logged."""
    bearer = token(jti=str(uuid4()))
    _, headers, body = await service.http(
        f"{path}?token={bearer}",
        method=method,
        headers={"Authorization": f"Bearer {bearer}", "Sec-WebSocket-Protocol": f"bearer.{bearer}"},
    )
    assert_absent(bearer, await written(service, body, *headers.values()))


async def test_a_token_in_a_frame_is_nowhere_to_be_seen(service: ServiceProcess) -> None:
    """A client that sends its token as a message does not find it in the answer or the log."""
    bearer = token(jti="frame")
    texts = [bearer, json.dumps({"type": "authenticate", "token": bearer}), f'{{"{bearer}": 1}}']
    async with service.connect(subprotocols=[V1]) as client:
        await client.recv()
        for text in texts:
            await client.send(text)
        answers = [await client.recv() for _ in texts]
    assert_absent(bearer, await written(service, *answers))


async def issued(service: ServiceProcess, bearer: str) -> str:
    """A ticket for the token."""
    status, _, body = await service.http(
        "/v1/tickets",
        method="POST",
        headers={"Authorization": f"Bearer {bearer}", "Content-Length": "0"},
    )
    assert status == 201
    return str(json.loads(body)["ticket"])


async def test_a_ticket_is_nowhere_to_be_seen(service: ServiceProcess) -> None:
    """Neither a ticket that opens a connection nor one that is used again is written down."""
    bearer = token(jti=str(uuid4()))
    ticket = await issued(service, bearer)
    for _ in range(2):
        target = f"/ws?a=b&ticket={ticket}&c=d"
        async with raw_websocket(service.port, target=target) as client:
            seen = await leave(client)
        text = await written(service, *seen)
        assert "ticket=redacted" in text
        assert_absent(ticket, text)
    assert "invalid_ticket" in text
    assert_absent(bearer, text)


ODD_PLACES: Final[Sequence[tuple[str, Mapping[str, str]]]] = (
    ("?Token={}", {}),
    ("?%54ICKET={}", {}),
    ("?a=1;ticket={};b=2", {}),
    ("?access_token={}", {}),
    ("?next=%2Fws%3Fticket%3D{}", {}),
    ("%3Ftoken={}", {}),
    (";ticket={}", {}),
    ("", {"Referer": "https://app.example.org/ws?ticket={}&a=b"}),
    ("", {"Referer": "https://app.example.org/login#access_token={}"}),
    ("", {"X-Original-URL": "/ws?ticket={}"}),
    ("", {"X-Forwarded-Uri": "/ws?TOKEN={}"}),
    ("", {"X-Rewrite-URL": "/ws?tick%65t={}"}),
    ("", {"Cookie": "session={}; a=b"}),
    ("", {"Proxy-Authorization": "Bearer {}"}),
    ("", {"X-Internal-API-Key": "{}"}),
)


@pytest.mark.parametrize("path", ["/ws", "/nowhere", "/v1/tickets", "/internal/v1/users/a"])
@pytest.mark.parametrize(("query", "headers"), ODD_PLACES)
async def test_a_secret_in_an_odd_place_is_nowhere_to_be_seen(
    service: ServiceProcess,
    exported: Collector,
    path: str,
    query: str,
    headers: Mapping[str, str],
) -> None:
    """What pages, proxies and careless clients repeat of a credential is in no log and no span."""
    ticket, request_id = await issued(service, token()), str(uuid4())
    target = path + query.format(ticket)
    spelled = {name: value.format(ticket) for name, value in headers.items()}
    _, answered, body = await service.http(target, headers={**spelled, "User-Agent": request_id})
    async with raw_websocket(service.port, target=target, headers=[*spelled.items()]) as client:
        seen = await leave(client) if client.status == 101 else [await client.body()]
    assert_absent(ticket, await written(service, body, *answered.values(), *seen))
    await exported.wait_for(lambda span: request_id in str(span.attributes))
    assert_absent(ticket, exported.text())


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer {}"},
        {"Sec-WebSocket-Protocol": "bearer.{}"},
        {"Sec-WebSocket-Protocol": "Bearer.{}"},
        {"Referer": "https://app.example.org/{}"},
        {"User-Agent": "{}"},
        {"X-Anything": "{}"},
    ],
    ids=lambda headers: next(iter(headers.items())),
)
async def test_a_token_in_a_header_is_in_no_span(
    service: ServiceProcess, exported: Collector, headers: Mapping[str, str]
) -> None:
    """Whoever wants all headers recorded does not get the tokens in them."""
    bearer, trace_id = token(jti=str(uuid4())), uuid4().hex
    spelled = {name: value.format(bearer) for name, value in headers.items()}
    for target in (f"/ws?token={bearer}", f"/v1/tickets?a={bearer}", f"/nowhere/{bearer}"):
        traced = {**spelled, "traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}
        await service.http(target, headers=traced)
    await exported.wait_for(lambda span: span.trace_id.hex() == trace_id, 3)
    assert_absent(bearer, exported.text())
    assert_absent(bearer, await written(service))


async def test_the_key_of_the_internal_api_is_nowhere_to_be_seen(
    service: ServiceProcess, exported: Collector
) -> None:
    """The services' own key is in no log and no span, whether it is right or nearly."""
    request_id = str(uuid4())
    for key in (API_KEY, f"{API_KEY}x", f" {API_KEY}"):
        headers = {"X-Internal-API-Key": key, "X-Service-ID": "tests", "User-Agent": request_id}
        await service.http("/internal/v1/users", headers=headers)
        async with raw_websocket(service.port, headers=[*headers.items()]) as client:
            await leave(client)
    await exported.wait_for(lambda span: request_id in str(span.attributes), 3)
    assert API_KEY not in exported.text()
    assert API_KEY not in await written(service)


async def test_the_dev_console_shows_no_credential_of_others(redis_server: RedisServer) -> None:
    """`dev` prints the token that it has made, and none that somebody comes with."""
    async with ServiceProcess(redis_server.url, command=DEV) as dev:
        bearer = token(jti="of the dev console")
        ticket = await issued(dev, bearer)
        for query in (f"token={bearer}", f"ticket={ticket}", f"ticket={ticket}", f"Token={bearer}"):
            async with raw_websocket(dev.port, target=f"/ws?{query}") as client:
                assert client.status == 101
                await leave(client)
        await dev.http(f"/ws?token={bearer}", headers={"Authorization": f"Bearer {bearer}"})
        text = await written(dev)
    assert "handshake refused" in text
    assert_absent(bearer, text)
    assert_absent(ticket, text)


async def test_the_secret_is_nowhere_to_be_seen(service: ServiceProcess) -> None:
    """Nor does the service ever write its own secret."""
    assert "a-secret-of-the-tests" not in await written(service)
