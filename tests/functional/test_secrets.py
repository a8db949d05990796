"""A token is seen by nobody but the validator: not in a log, a metric or an error."""

import json
from collections.abc import AsyncIterator, Sequence
from urllib.parse import quote
from uuid import uuid4

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from huleedu_service_libs.redis_server import RedisServer
from tests.functional.closes import closed
from tests.functional.raw_websocket import RawWebSocket, close_frame, raw_websocket
from tests.functional.tokens import BAD_TOKENS, WAYS, by_subprotocol_in_v1
from tests.service_process import HYPERCORN, ServiceProcess, token

pytestmark = pytest.mark.asyncio(loop_scope="module")

V1 = "huleedu.notify.v1"
# Every field of the request that can be logged, and all of its headers that could hold a token.
ACCESS_LOG_FORMAT = (
    'access: %(h)s "%(r)s" "%(R)s" "%(U)s" "%(Uq)s" "%(q)s" %(s)s %(st)s '
    "%({{authorization}}i)s %({{sec-websocket-protocol}}i)s %({{sec-websocket-protocol}}o)s"
)
MIN_PART_LENGTH = 12


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(redis_server: RedisServer) -> AsyncIterator[ServiceProcess]:
    """A service that writes down all it can."""
    command = [
        *HYPERCORN[:-1],
        *("--access-logfile", "-", "--access-logformat", ACCESS_LOG_FORMAT),
        *("--error-logfile", "-", "--log-level", "DEBUG"),
        *("--bind", "127.0.0.1:{port}"),
    ]
    settings = {"LOG_LEVEL": "DEBUG", "PYTHONASYNCIODEBUG": "1"}
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


async def test_the_secret_is_nowhere_to_be_seen(service: ServiceProcess) -> None:
    """Nor does the service ever write its own secret."""
    assert "a-secret-of-the-tests" not in await written(service)
