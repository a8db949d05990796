"""Handshakes that no well-meant client sends."""

import asyncio
import contextlib
import socket
from collections.abc import Sequence

import pytest

from huleedu_service_libs.redis_server import RedisServer
from tests.functional.raw_websocket import UPGRADE, Opcode, frame, raw_websocket
from tests.service_process import CONTROL_CHANNEL, ServiceProcess, token

pytestmark = pytest.mark.asyncio(loop_scope="module")

GIVE_UP_AFTER_S = 10


async def answer(service: ServiceProcess, request: bytes) -> bytes:
    """All that the server says until it hangs up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    try:
        writer.write(request)
        async with asyncio.timeout(GIVE_UP_AFTER_S):
            return await reader.read()
    finally:
        writer.close()


def handshake(
    headers: Sequence[tuple[str, str]] = UPGRADE, *, version: str = "1.1", target: str = "/ws"
) -> bytes:
    lines = [f"GET {target} HTTP/{version}", "Host: localhost"]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([*lines, f"Authorization: Bearer {token()}", "", ""]).encode()


def replaced(name: str, *values: str) -> list[tuple[str, str]]:
    """The usual headers, one of them with other values."""
    others = [header for header in UPGRADE if header[0] != name]
    return others + [(name, value) for value in values]


async def nobody_is_left(service: ServiceProcess) -> None:
    names = ("websocket_connections", "websocket_handshakes")
    async with asyncio.timeout(GIVE_UP_AFTER_S):
        while any([(await service.metrics())[name] for name in names]):
            pass
        while (await service.metrics())["websocket_subscriptions"] != CONTROL_CHANNEL:
            pass


@pytest.mark.parametrize(
    "too_early",
    [b"x", frame(Opcode.TEXT, b"hello"), frame(Opcode.PING) * 100],
    ids=["a byte", "a text", "pings"],
)
async def test_bytes_before_the_answer_leave_nobody_behind(
    service: ServiceProcess, too_early: bytes
) -> None:
    """A client that talks before it is answered is refused, and takes none of its user's places."""
    for _ in range(10):  # twice as many as a user may have
        assert (await answer(service, handshake() + too_early)).startswith(b"HTTP/1.1 400")
    await nobody_is_left(service)
    async with service.connect():
        pass


@pytest.mark.parametrize(
    "headers",
    [
        replaced("Sec-WebSocket-Key"),
        replaced("Sec-WebSocket-Key", ""),
        replaced("Sec-WebSocket-Key", "short"),
        replaced("Sec-WebSocket-Key", "x" * 3000),
        replaced("Sec-WebSocket-Key", "!" * 22 + "=="),
        replaced("Sec-WebSocket-Key", *["dGhlIHNhbXBsZSBub25jZQ=="] * 2),
        replaced("Sec-WebSocket-Version"),
        replaced("Sec-WebSocket-Version", "12"),
        [*UPGRADE, ("Content-Length", "5")],
    ],
    ids=lambda headers: repr(headers[-1])[:50],
)
async def test_what_is_no_upgrade_is_refused_and_hung_up_on(
    service: ServiceProcess, headers: list[tuple[str, str]]
) -> None:
    """A malformed upgrade gets 400, and its socket does not stay open."""
    body = b"12345" if headers[-1][0] == "Content-Length" else b""
    assert (await answer(service, handshake(headers) + body)).startswith(b"HTTP/1.1 400")
    await nobody_is_left(service)


@pytest.mark.parametrize("version", ["1.0", "1.2", "2.0"])
async def test_only_http_1_1(service: ServiceProcess, version: str) -> None:
    """An upgrade in another version of HTTP opens nothing."""
    seen = await answer(service, handshake(version=version))
    assert b" 400" in seen.partition(b"\r\n")[0]
    await nobody_is_left(service)


async def test_http_2_is_not_spoken(service: ServiceProcess) -> None:
    """Whoever begins in HTTP/2, or asks to change to it, is answered in HTTP/1.1."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)
    assert (await answer(service, preface)).startswith(b"HTTP/1.1 4")
    asked, _, _ = await service.http(
        "/healthz", headers={"Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAAQAoAAAAAIAAAAA"}
    )
    assert asked == 200


async def test_several_origins_are_none_that_is_allowed(service: ServiceProcess) -> None:
    """A second Origin header does not hide behind the first."""
    settings = {"CORS_ORIGINS": '["https://app.example.org"]'}
    origins = [("Origin", "https://app.example.org"), ("Origin", "https://evil.example")]
    async with (
        ServiceProcess(service.redis_url, settings=settings) as strict,
        raw_websocket(strict.port, token=token(), headers=origins) as client,
    ):
        code, reason = await client.receive_close()
        assert code == 1008
        assert "AUTHORIZATION_ERROR" in reason


async def test_socket_that_only_connects_is_hung_up_on(service: ServiceProcess) -> None:
    """A TCP connection on which nothing comes does not stay for ever."""
    with socket.create_connection(("127.0.0.1", service.port)) as silent:
        silent.settimeout(GIVE_UP_AFTER_S)
        assert await asyncio.to_thread(silent.recv, 1) == b""


HEADER_LIMIT_BYTES = 16_384


def padded(request: bytes, size: int) -> bytes:
    """The same request with another header, so that it has `size` bytes."""
    head = request.removesuffix(b"\r\n") + b"X-Padding: "
    return head + b"x" * (size - len(head) - 4) + b"\r\n\r\n"


@pytest.mark.parametrize("size", [HEADER_LIMIT_BYTES + 2, 20_000, 65_536, 1_000_000])
@pytest.mark.parametrize("target", ["/ws", "/healthz"])
async def test_long_headers_at_once(service: ServiceProcess, size: int, target: str) -> None:
    """A request with headers over 16 KiB gets 431, and its connection is closed."""
    seen = await answer(service, padded(handshake(target=target), size))
    # Of a client that is still sending, the answer may be lost with the connection.
    assert seen.startswith(b"HTTP/1.1 431") or size == 1_000_000
    await nobody_is_left(service)


@pytest.mark.parametrize("pieces", [2, 20, 2_000])
async def test_long_headers_in_pieces(service: ServiceProcess, pieces: int) -> None:
    """So does one whose headers come bit by bit."""
    request = padded(handshake(), HEADER_LIMIT_BYTES + 1000)
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    step = len(request) // pieces + 1
    try:
        async with asyncio.timeout(GIVE_UP_AFTER_S):
            seen = asyncio.create_task(reader.readuntil(b"\r\n\r\n"))
            for start in range(0, len(request), step):
                if not seen.done():
                    writer.write(request[start : start + step])
                    await asyncio.sleep(0)
            assert (await seen).startswith(b"HTTP/1.1 431")
    finally:
        writer.close()
    await nobody_is_left(service)


async def test_headers_of_the_largest_size(service: ServiceProcess) -> None:
    """A handshake whose headers just fit is accepted."""
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    try:
        writer.write(padded(handshake(), HEADER_LIMIT_BYTES))
        async with asyncio.timeout(GIVE_UP_AFTER_S):
            assert (await reader.readline()).startswith(b"HTTP/1.1 101")
    finally:
        writer.close()


async def test_slow_handshakes_hold_nothing(redis_server: RedisServer) -> None:
    """A hundred clients that never finish their request are hung up on, and keep nobody out."""
    settings = {"WEBSOCKET_MAX_CONNECTIONS": "1", "WEBSOCKET_MAX_CONNECTIONS_PER_USER": "1"}
    async with ServiceProcess(redis_server.url, settings=settings) as service:
        slow = [asyncio.create_task(trickle(service)) for _ in range(100)]
        async with service.connect() as client:
            await (await client.ping())
            metrics = await service.metrics()
            assert metrics["websocket_handshakes"] == 0
            assert metrics["websocket_connections"] == 1
            async with asyncio.timeout(GIVE_UP_AFTER_S):
                await asyncio.gather(*slow)
            await (await client.ping())


async def trickle(service: ServiceProcess) -> None:
    """Send one header after the other for as long as the service listens."""
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    try:
        writer.write(handshake().removesuffix(b"\r\n"))
        ended = asyncio.create_task(reader.read())
        with contextlib.suppress(ConnectionError):
            while not ended.done():
                writer.write(b"X-One-More: x\r\n")
                await writer.drain()
                await asyncio.wait([ended], timeout=0.1)
        with contextlib.suppress(ConnectionError):
            assert await ended == b""
    finally:
        writer.close()


@pytest.mark.parametrize("target", ["/nowhere", "/healthz", "/v1/tickets"])
async def test_what_follows_an_upgrade_to_nowhere(service: ServiceProcess, target: str) -> None:
    """Whoever goes on after a refusal is hung up on, and no log line looks like a defect."""
    async with raw_websocket(service.port, target=target) as client:
        assert client.status in {400, 404, 405}
        # It may have hung up already.
        with contextlib.suppress(ConnectionError):
            await client.send(frame(Opcode.TEXT, b"hello"), frame(Opcode.CLOSE, b"\x03\xe8"))
        await client.drained()
    await nobody_is_left(service)
    assert "Traceback" not in service.output()
