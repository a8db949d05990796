"""Requests that no client makes by accident: nobody but their author notices."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Final

import pytest
import pytest_asyncio
from redis.asyncio import Redis
from websockets.asyncio.client import ClientConnection

from huleedu_service_libs.redis_server import RedisServer
from tests.functional.raw_websocket import KEY, UPGRADE, Opcode, frame
from tests.service_process import ServiceProcess, token

pytestmark = pytest.mark.asyncio(loop_scope="module")

DEADLINE_S: Final = 20
SECOND: Final = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
"""A request that is smuggled in behind another one."""
INJECTED: Final = b"x-injected"
BEARER: Final = token("stranger")
OTHER_BEARER: Final = token("neighbour")
ANSWERS: Final = {b"101", b"400", b"401", b"404", b"405", b"426", b"431", b"501"}
REFUSALS: Final = ANSWERS - {b"101"}


def handshake(
    line: bytes = b"GET /ws HTTP/1.1",
    *more: bytes,
    body: bytes = b"",
    end: bytes = b"\r\n",
    host: bytes | None = b"localhost",
    bearer: str | None = BEARER,
) -> bytes:
    """A good one, save for the request line and what stands behind its headers."""
    lines = [line, *(f"{name}: {value}".encode() for name, value in UPGRADE), *more]
    if host is not None:
        lines.insert(1, b"Host: " + host)
    if bearer is not None:
        lines.append(f"Authorization: Bearer {bearer}".encode())
    return end.join([*lines, b"", b""]) + body


LINE: Final = b"GET /ws HTTP/1.1"
REFUSED: Final[Mapping[str, bytes]] = {
    "two hosts": handshake(LINE, b"Host: evil.example"),
    "no host": handshake(host=None),
    "a body": handshake(LINE, b"Content-Length: %d" % len(SECOND), body=SECOND),
    "two lengths": handshake(
        LINE, b"Content-Length: 0", b"Content-Length: %d" % len(SECOND), body=SECOND
    ),
    "two lengths in one": handshake(LINE, b"Content-Length: 0, 43", body=SECOND),
    "a negative length": handshake(LINE, b"Content-Length: -1"),
    "a length with a sign": handshake(LINE, b"Content-Length: +5"),
    "a length of 5,000 digits": handshake(LINE, b"Content-Length: " + b"9" * 5_000),
    "chunks": handshake(LINE, b"Transfer-Encoding: chunked", body=b"0\r\n\r\n" + SECOND),
    "chunks and a length": handshake(
        LINE, b"Transfer-Encoding: chunked", b"Content-Length: 5", body=b"0\r\n\r\n" + SECOND
    ),
    "a plain request of two lengths": (
        b"POST /v1/tickets HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SECOND
    ),
    "chunks of another kind": handshake(LINE, b"Transfer-Encoding: xchunked", body=SECOND),
    "chunks twice": handshake(LINE, b"Transfer-Encoding: chunked, chunked", body=SECOND),
    "chunks behind a tab": handshake(LINE, b"Transfer-Encoding:\x0bchunked", body=SECOND),
    "a name with a blank behind": handshake(LINE, b"Transfer-Encoding : chunked", body=SECOND),
    "a name with a blank": handshake(LINE, b"X Injected: yes"),
    "no name": handshake(LINE, b": yes"),
    "no colon": handshake(LINE, b"X-Injected"),
    "a name of other letters": handshake(LINE, "X-Inject\u00e9d: yes".encode()),
    "the first header is folded": handshake(b"GET /ws HTTP/1.1\r\n X-Injected: yes"),
    "NUL in a value": handshake(LINE, b"X-A: a\x00X-Injected: yes"),
    "NUL in a name": handshake(LINE, b"X-A\x00X-Injected: yes"),
    "NUL behind the token": handshake(LINE, b"Authorization: Bearer \x00"),
    "CR in a value": handshake(LINE, b"X-A: a\rX-Injected: yes"),
    "two keys": handshake(LINE, f"Sec-WebSocket-Key: {KEY}".encode()),
    "two different keys": handshake(LINE, b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="),
    "another upgrade besides": handshake(LINE, b"Upgrade: h2c"),
    "a close besides": handshake(LINE, b"Connection: close"),
    "POST": handshake(b"POST /ws HTTP/1.1"),
    "CONNECT": handshake(b"CONNECT localhost:80 HTTP/1.1"),
    "OPTIONS of all": handshake(b"OPTIONS * HTTP/1.1"),
    "a whole URL": handshake(b"GET http://localhost/ws HTTP/1.1"),
    "a whole URL of another host": handshake(b"GET http://evil.example/ws HTTP/1.1"),
    "two slashes": handshake(b"GET //ws HTTP/1.1"),
    "a path around": handshake(b"GET /x/../ws HTTP/1.1"),
    "a path inside": handshake(b"GET /ws/../metrics HTTP/1.1"),
    "an escaped path inside": handshake(b"GET /ws/%2e%2e/metrics HTTP/1.1"),
    "an escaped slash": handshake(b"GET /%2fws HTTP/1.1"),
    "an escaped NUL": handshake(b"GET /ws%00 HTTP/1.1"),
    "an escaped line": handshake(b"GET /ws%0d%0aX-Injected:%20yes HTTP/1.1"),
    "half a surrogate pair": handshake(b"GET /%ED%A0%80 HTTP/1.1"),
    "NUL in the path": handshake(b"GET /ws\x00 HTTP/1.1"),
    "CR in the path": handshake(b"GET /ws\rX-Injected:yes HTTP/1.1"),
    "a blank in the path": handshake(b"GET /ws x HTTP/1.1"),
    "letters in the path": handshake(b"GET /ws\xff HTTP/1.1"),
    "parameters in the path": handshake(b"GET /ws;a=b HTTP/1.1"),
    "a long query": handshake(b"GET /ws?" + b"a" * 17_000 + b" HTTP/1.1"),
    "100,000 headers": handshake(LINE, *[b"a:b"] * 100_000),
    "a long name": handshake(LINE, b"a" * 17_000 + b": b"),
    "HTTP/0.9": b"GET /ws\r\n\r\n",
    "HTTP/9.9": handshake(b"GET /ws HTTP/9.9"),
    "another protocol": handshake(b"GET /ws http/1.1"),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "PROXY": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + handshake(),
    "NUL": bytes(1000),
    "a long line": b"G" * 20_000,
    "another request behind": handshake() + SECOND,
    "a frame behind": handshake() + frame(Opcode.TEXT, b"{}"),
    "two tokens of two users, one of them behind NUL": handshake(
        LINE, f"Authorization: Bearer {OTHER_BEARER}\x00".encode()
    ),
}
"""None of these is answered with an upgrade."""

TOLERATED: Final[Mapping[str, bytes]] = {
    "two tokens": handshake(LINE, f"Authorization: Bearer {OTHER_BEARER}".encode()),
    "a folded header": handshake(LINE, b"X-A: a\r\n X-Injected: yes"),
    "a folded token": handshake(LINE, b"X-A: a\r\n Authorization: Bearer x"),
    "lines without CR": handshake(end=b"\n"),
    "one line without CR": handshake(LINE, b"X-A: a\nX-B: b"),
    "two versions": handshake(LINE, b"Sec-WebSocket-Version: 13"),
    "a length of nothing": handshake(LINE, b"Content-Length: 0"),
    "an expectation": handshake(LINE, b"Expect: 100-continue"),
    "an escaped path": handshake(b"GET /%77s HTTP/1.1"),
    "an escaped NUL in the query": handshake(b"GET /ws?a=%00&cursor=%00 HTTP/1.1"),
    "an escaped line in the query": handshake(
        b"GET /ws?correlation_id=%0d%0aX-Injected:%20yes&cursor=%0d%0aX-Injected:a HTTP/1.1"
    ),
    "an escaped line in the id": handshake(LINE, b"X-Correlation-ID: a%0d%0aX-Injected: yes"),
    "an escaped line in the subprotocol": handshake(
        LINE, b"Sec-WebSocket-Protocol: bearer.a%0d%0aX-Injected: yes", bearer=None
    ),
    "no subprotocol at all": handshake(
        LINE, b'Sec-WebSocket-Protocol: bearer.a"b;(c), ,,=', bearer=None
    ),
    "no text in the query": handshake(b"GET /ws?cursor=%zz&x=%ED%A0%80&%ff=%fe HTTP/1.1"),
    "a query of many": handshake(b"GET /ws?" + b"a=b&" * 3_700 + b" HTTP/1.1"),
    "2,000 headers": handshake(LINE, *[b"a:b"] * 2_000),
    "blank lines in front": b"\r\n" * 3 + handshake(),
}
"""These may be, and get no more than they would in better spelling."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(redis_server: RedisServer) -> AsyncIterator[ServiceProcess]:
    settings = {"WEBSOCKET_MAX_CONNECTIONS_PER_USER": "100"}
    async with ServiceProcess(redis_server.url, settings=settings) as process:
        yield process


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def neighbour(service: ServiceProcess) -> AsyncIterator[ClientConnection]:
    """Somebody who was there before, and knows nothing of all this."""
    async with service.connect("neighbour") as client:
        yield client


async def answer(service: ServiceProcess, request: bytes) -> bytes:
    """What comes until the server has nothing more to say, or has opened a WebSocket."""
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    received = b""
    try:
        async with asyncio.timeout(DEADLINE_S):
            with contextlib.suppress(ConnectionError):
                writer.write(request)
                while data := await reader.read(65_536):
                    received += data
                    if received.startswith(b"HTTP/1.1 101"):
                        break
    finally:
        writer.close()
    return received


async def assert_unharmed(
    service: ServiceProcess, neighbour: ClientConnection, redis: Redis, received: bytes
) -> None:
    """One answer at most, with nothing in it that is not its author's; all others are served."""
    head, _, body = received.partition(b"\r\n\r\n")
    names = {line.partition(b":")[0].strip().lower() for line in head.split(b"\n")}
    assert INJECTED not in names
    assert received.count(b"HTTP/1.1 ") <= 1
    for telling in (b"Traceback", b"websocket_connections", *(BEARER.encode().split(b".")[1:])):
        assert telling not in body
    assert await redis.publish("ws:neighbour", '{"event": "e"}') == 1
    async with asyncio.timeout(DEADLINE_S):
        assert await neighbour.recv() == '{"event": "e"}'
    assert "Traceback" not in service.output()


@pytest.mark.parametrize("wrong", REFUSED)
async def test_what_is_no_handshake(
    service: ServiceProcess, neighbour: ClientConnection, redis: Redis, wrong: str
) -> None:
    """It is answered once with an error, or hung up on; it opens and tells nothing."""
    received = await answer(service, REFUSED[wrong])
    assert received == b"" or received.split()[1] in REFUSALS
    await assert_unharmed(service, neighbour, redis, received)


@pytest.mark.parametrize("odd", TOLERATED)
async def test_what_may_be_a_handshake(
    service: ServiceProcess, neighbour: ClientConnection, redis: Redis, odd: str
) -> None:
    """It is taken as it stands: no header and no line comes out of a value."""
    received = await answer(service, TOLERATED[odd])
    assert received == b"" or received.split()[1] in ANSWERS
    await assert_unharmed(service, neighbour, redis, received)
