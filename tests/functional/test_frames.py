"""What the two sides may say to each other on an open connection, and what ends it."""

import asyncio
import json
import signal
import struct
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis
from websockets.asyncio.client import ClientConnection

from huleedu_service_libs.redis_server import RedisServer
from tests.functional.closes import assert_public_error, closed, parsed_reason
from tests.functional.raw_websocket import (
    Opcode,
    RawWebSocket,
    close_frame,
    frame,
    raw_websocket,
)
from tests.service_process import ServiceProcess, token

pytestmark = pytest.mark.asyncio(loop_scope="module")

V1 = "huleedu.notify.v1"
CHANNEL = "ws:teacher-1"
LIMIT_BYTES = 65_536
PING_INTERVAL_S = 0.3


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lively_service(redis_server: RedisServer) -> AsyncIterator[ServiceProcess]:
    """A service that pings often and soon gives up on those who do not answer."""
    settings = {
        "WEBSOCKET_PING_INTERVAL": str(PING_INTERVAL_S),
        "WEBSOCKET_IDLE_TIMEOUT": "1.5",
        "WEBSOCKET_CLOSE_TIMEOUT": "0.5",
    }
    async with ServiceProcess(redis_server.url, settings=settings) as process:
        yield process


async def receive_frame(client: ClientConnection) -> dict[str, Any]:
    """The next frame of the v1 dialect."""
    received: dict[str, Any] = json.loads(await client.recv())
    return received


async def welcomed(client: ClientConnection) -> dict[str, Any]:
    welcome = await receive_frame(client)
    assert welcome["type"] == "welcome"
    return welcome


async def raw_reason(client: RawWebSocket) -> tuple[int, str]:
    """Code and error code of the close frame."""
    code, reason = await client.receive_close()
    return code, parsed_reason(reason)["error_code"]


# Plain


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "hello",
        "null",
        "[]",
        '{"type": "ping", "nonce": 1}',
        '{"type": "authenticate", "token": "x"}',
        '{"type"',
        "\x00\x1f\x7f\ufeff\uffff",
        "👩‍🏫" * 3000,
        "x" * 60_000,
        "x" * LIMIT_BYTES,
        "é" * (LIMIT_BYTES // 2),
        "[" * 50_000,
    ],
    ids=lambda text: repr(text[:12]),
)
async def test_a_text_never_ends_a_plain_connection(
    service: ServiceProcess, redis: Redis, text: str
) -> None:
    """Whatever text a plain client sends is ignored, and its notifications go on coming."""
    async with service.connect() as client:
        await client.send(text)
        await (await client.ping())
        assert await redis.publish(CHANNEL, "still here") == 1
        assert await client.recv() == "still here"


async def test_a_text_may_come_in_pieces(service: ServiceProcess, redis: Redis) -> None:
    """Fragments, with pings between them and a character split over two, make up one text."""
    async with raw_websocket(service.port, token=token()) as client:
        await client.send(
            frame(Opcode.TEXT, b"gr\xc3", fin=False),
            frame(Opcode.PING, b"between"),
            frame(Opcode.CONTINUATION, b"", fin=False),
            frame(Opcode.CONTINUATION, b"\xbc\xc3\x9fe"),
            frame(Opcode.PING, b"after"),
        )
        assert (await client.receive()).payload == b"between"
        assert (await client.receive()).payload == b"after"
        assert await redis.publish(CHANNEL, "still here") == 1
        assert (await client.receive()).payload == b"still here"


@pytest.mark.parametrize("payload", ["[1]", "null", '"x"', "17", "", "no JSON", "{", "NaN", "{}\n"])
async def test_plain_delivers_what_is_no_object_too(
    service: ServiceProcess, redis: Redis, payload: str
) -> None:
    """A plain client gets every text as published, whether it is JSON or not."""
    async with service.connect() as client:
        assert await redis.publish(CHANNEL, payload) == 1
        assert await client.recv() == payload


# Ends


@pytest.mark.parametrize("payload", [b"", b"x", b"{}", b"\xff" * 60_000])
@pytest.mark.parametrize("subprotocols", [(), (V1,)])
async def test_a_binary_frame_ends_the_connection(
    service: ServiceProcess, payload: bytes, subprotocols: tuple[str, ...]
) -> None:
    """Binary is not spoken here: 1003, an empty frame included."""
    async with service.connect(subprotocols=subprotocols) as client:
        await client.send(payload)
        close = await closed(client)
    assert (close.code, close.reason["error_code"]) == (1003, "INVALID_REQUEST")


@pytest.mark.parametrize(
    "text",
    ["x" * (LIMIT_BYTES + 1), "é" * (LIMIT_BYTES // 2 + 1), "x" * 20_000_000],
    ids=["one byte too many", "two-byte characters", "20 MB"],
)
async def test_an_oversize_text_ends_the_connection(service: ServiceProcess, text: str) -> None:
    """A text over the limit is answered with 1009."""
    # Without `async with`: the library trips over a transport that was closed in mid-write.
    client = await service.connect()
    sending = asyncio.create_task(client.send(text))
    close = await closed(client)
    await asyncio.wait([sending])
    sending.exception()
    await client.wait_closed()
    assert (close.code, close.reason["error_code"]) == (1009, "INVALID_REQUEST")


async def test_an_oversize_text_in_pieces_ends_the_connection(service: ServiceProcess) -> None:
    """Fragments that together are over the limit are answered with 1009."""
    async with service.connect() as client:
        await client.send(["x" * 30_000] * 3)
        close = await closed(client)
    assert (close.code, close.reason["error_code"]) == (1009, "INVALID_REQUEST")


@pytest.mark.parametrize("opcode", [Opcode.TEXT, Opcode.BINARY])
async def test_a_client_that_sends_on_still_hears_that_it_was_too_much(
    service: ServiceProcess, opcode: Opcode
) -> None:
    """A client that first sends all of its 8 MB and then reads finds 1009, and not a reset."""
    async with raw_websocket(service.port, token=token()) as client:
        await client.send(frame(opcode, b"x" * 8_000_000))
        assert await raw_reason(client) == (1009, "INVALID_REQUEST")


async def test_a_client_that_never_finishes_hears_that_it_was_too_much(
    service: ServiceProcess,
) -> None:
    """A frame that announces a gigabyte ends the connection once the limit is passed."""
    async with raw_websocket(service.port, token=token()) as client:
        await client.send(frame(Opcode.TEXT, b"x" * (LIMIT_BYTES + 1), announced=1 << 30))
        assert await raw_reason(client) == (1009, "INVALID_REQUEST")


@pytest.mark.parametrize(
    "frames",
    [
        [frame(Opcode.TEXT, b"\xff")],
        [frame(Opcode.TEXT, b"cut off \xc3")],
        [frame(Opcode.TEXT, b"half a pair \xed\xa0\x80")],
        [frame(Opcode.TEXT, b"overlong \xc0\xaf")],
        [frame(Opcode.TEXT, b"fine", fin=False), frame(Opcode.CONTINUATION, b"\xfe")],
        [frame(Opcode.TEXT, b"\xc3", fin=False), frame(Opcode.CONTINUATION, b"\xc3")],
        [close_frame(1000, b"\xff")],
    ],
    ids=["byte", "cut off", "surrogate", "overlong", "fragment", "split", "close reason"],
)
async def test_invalid_utf8_ends_the_connection(
    service: ServiceProcess, frames: list[bytes]
) -> None:
    """Text that is not UTF-8 is answered with 1007."""
    async with raw_websocket(service.port, token=token()) as client:
        await client.send(*frames)
        assert await raw_reason(client) == (1007, "INVALID_REQUEST")


@pytest.mark.parametrize(
    "frames",
    [
        [frame(Opcode.TEXT, b"x", masked=False)],
        [frame(Opcode.TEXT, b"x", reserved=0b100)],
        [frame(Opcode.TEXT, b"x", reserved=0b010)],
        [frame(Opcode.PING, b"x", reserved=0b001)],
        [frame(3, b"x")],
        [frame(7)],
        [frame(11)],
        [frame(15, b"x")],
        [frame(Opcode.PING, b"x", fin=False)],
        [frame(Opcode.PING, b"x" * 126)],
        [frame(Opcode.CONTINUATION, b"x")],
        [frame(Opcode.TEXT, b"x", fin=False), frame(Opcode.TEXT, b"x")],
        [bytes([0x81, 0xFE, 0, 1, 0, 0, 0, 0]) + b"x"],
        [bytes([0x81, 0xFF]) + struct.pack("!Q", 1 << 63)],
        [frame(Opcode.CLOSE, b"x")],
        [close_frame(999)],
        [close_frame(1005)],
        [close_frame(1006)],
        [close_frame(2999)],
        [close_frame(5000)],
        [b"GET / HTTP/1.1\r\n\r\n"],
    ],
    ids=[
        "unmasked",
        "reserved bit 1",
        "reserved bit 2",
        "reserved bit 3",
        "opcode 3",
        "opcode 7",
        "opcode 11",
        "opcode 15",
        "fragmented ping",
        "long ping",
        "continuation of nothing",
        "text within a text",
        "length of a wrong form",
        "length of 2^63",
        "close of one byte",
        "close 999",
        "close 1005",
        "close 1006",
        "close 2999",
        "close 5000",
        "HTTP",
    ],
)
async def test_a_frame_against_the_rules_ends_the_connection(
    service: ServiceProcess, frames: list[bytes]
) -> None:
    """What RFC 6455 does not allow is answered with 1002."""
    async with raw_websocket(service.port, token=token()) as client:
        await client.send(*frames)
        assert await raw_reason(client) == (1002, "INVALID_REQUEST")


@pytest.mark.parametrize("headers", [(), (("Sec-WebSocket-Protocol", V1),)])
async def test_a_flood_ends_the_connection(
    service: ServiceProcess, headers: tuple[tuple[str, str], ...]
) -> None:
    """A client that sends far too many messages at once is told to slow down: 4009."""
    async with raw_websocket(service.port, token=token(), headers=headers) as client:
        await client.send(frame(Opcode.TEXT, b'{"type": "ping", "nonce": 1}') * 3000)
        assert await raw_reason(client) == (4009, "RATE_LIMIT")


@pytest.mark.parametrize("subprotocols", [(), (V1,)])
async def test_a_token_that_expires_ends_its_connection(
    service: ServiceProcess, redis: Redis, subprotocols: tuple[str, ...]
) -> None:
    """Once its token has expired a client is told to get another: 1008."""
    bearer = token(exp=time.time() + 1)
    async with service.connect(bearer=bearer, subprotocols=subprotocols) as client:
        assert await redis.publish(CHANNEL, "{}") == 1
        close = await closed(client)
    assert close.code == 1008
    assert close.reason["error_code"] == "AUTHENTICATION_ERROR"
    assert close.reason["message"] == "Token has expired"


@pytest.mark.parametrize("code", [1000, 1001, 3000, 4999, None])
async def test_a_client_may_leave(service: ServiceProcess, code: int | None) -> None:
    """A client's close is answered with the same code, and the TCP connection is ended."""
    async with raw_websocket(service.port, token=token()) as client:
        await client.send(frame(Opcode.CLOSE) if code is None else close_frame(code, b"bye"))
        received = await client.receive()
        assert received.opcode == Opcode.CLOSE
        assert received.payload[:2] == (b"" if code is None else struct.pack("!H", code))
        await client.drained()


async def test_after_its_close_the_server_waits_for_the_answer_and_no_longer(
    lively_service: ServiceProcess,
) -> None:
    """A client that does not answer the close frame is cut off all the same."""
    async with raw_websocket(lively_service.port, token=token()) as client:
        await client.send(frame(Opcode.BINARY))
        assert await raw_reason(client) == (1003, "INVALID_REQUEST")
        await client.drained()


# v1


async def test_the_welcome_comes_first_and_is_complete(
    service: ServiceProcess, redis: Redis
) -> None:
    """The first frame of a v1 connection says who one is and what to expect."""
    bearer = token("teacher-7", exp=4_000_000_000)
    ids = set()
    for _ in range(2):
        async with service.connect(bearer=bearer, subprotocols=[V1]) as client:
            assert client.subprotocol == V1
            assert await redis.publish("ws:teacher-7", '{"event":"e","data":{}}') == 1
            welcome = await receive_frame(client)
            ids.add(welcome.pop("connection_id"))
            assert welcome == {
                "type": "welcome",
                "user_id": "teacher-7",
                "heartbeat_ms": 30_000,
                "cursor": None,
                "resumed": None,
                "token_expires_at": datetime.fromtimestamp(4_000_000_000, UTC).isoformat(),
            }
            assert (await receive_frame(client))["type"] == "notification"
    assert len(ids) == 2


@pytest_asyncio.fixture(loop_scope="module")
async def stream(redis: Redis) -> AsyncIterator[None]:
    """While the test runs, notifications come thick and fast."""

    async def publish() -> None:
        while not ended.is_set():
            await redis.publish(CHANNEL, '{"event":"e"}')

    # Not by a cancellation, which redis-py may swallow.
    ended = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(publish())
        yield
        ended.set()


@pytest.mark.usefixtures("stream")
async def test_the_welcome_comes_first_in_the_midst_of_notifications(
    service: ServiceProcess,
) -> None:
    """So it does while notifications come thick and fast."""
    headers = [("Sec-WebSocket-Protocol", V1)]
    for _ in range(20):
        async with raw_websocket(service.port, token=token(), headers=headers) as client:
            types = [json.loads((await client.receive()).payload)["type"] for _ in range(2)]
            assert types == ["welcome", "notification"]


@pytest.mark.parametrize(
    ("published", "received"),
    [
        ("{}", '{"type":"notification"}'),
        (" {} ", '{"type":"notification"}'),
        ('{"event":"e","data":{}}', '{"type":"notification","event":"e","data":{}}'),
        (
            '\n{ "event" : "é👍\\u0000", "n": 1.50 }\n',
            '{"type":"notification", "event" : "é👍\\u0000", "n": 1.50 }\n',
        ),
        ('{"type":"x","event":"e"}', '{"type":"notification","event":"e"}'),
        ('{"event":"e","ty\\u0070e":"x"}', '{"type":"notification","event":"e"}'),
    ],
)
async def test_a_notification_is_the_published_object_with_its_type(
    service: ServiceProcess, redis: Redis, published: str, received: str
) -> None:
    """The fields arrive as they were published, with `type` in front."""
    async with service.connect(subprotocols=[V1]) as client:
        await welcomed(client)
        assert await redis.publish(CHANNEL, published) == 1
        assert await client.recv() == received


@pytest.mark.parametrize(
    "payload",
    ["[1]", "null", '"x"', "17", "", "no JSON", "{", '{"a": NaN}', "{}{}", "{" * 2000, "[" * 2000],
)
async def test_v1_drops_what_is_no_object(
    service: ServiceProcess, redis: Redis, payload: str
) -> None:
    """What is no JSON object can be no v1 frame: it is counted, and the next one arrives."""
    async with service.connect(subprotocols=[V1]) as client:
        await welcomed(client)
        before = (await service.metrics())["websocket_undeliverable_total"]
        assert await redis.publish(CHANNEL, payload) == 1
        assert await redis.publish(CHANNEL, '{"event":"next"}') == 1
        assert await receive_frame(client) == {"type": "notification", "event": "next"}
        assert (await service.metrics())["websocket_undeliverable_total"] == before + 1


@pytest.mark.parametrize("subprotocols", [(), (V1,)])
async def test_a_payload_that_is_no_text_is_dropped(
    service: ServiceProcess, redis: Redis, subprotocols: tuple[str, ...]
) -> None:
    """Bytes that are not UTF-8 fit no text frame: counted, dropped, and the next one arrives."""
    async with service.connect(subprotocols=subprotocols) as client:
        before = (await service.metrics())["websocket_undeliverable_total"]
        for payload in (b"\xff", b'{"event":"\xed\xa0\x80"}', b'{"event":"\xc3'):
            assert await redis.publish(CHANNEL, payload) == 1
        assert await redis.publish(CHANNEL, '{"event":"next"}') == 1
        while (received := await receive_frame(client)).get("type") == "welcome":
            pass
        assert received["event"] == "next"
        assert (await service.metrics())["websocket_undeliverable_total"] == before + 3


@pytest.mark.parametrize(
    "nonce",
    [
        "null",
        "true",
        "0",
        "-1.5",
        "1e300",
        '""',
        "[]",
        "{}",
        '{"a":[1,{"b":null}]}',
        '"\\u0000\\"\\\\"',
        '"👍"',
        json.dumps("x" * 62),
        json.dumps("é" * 31, ensure_ascii=False),
        "9" * 64,
    ],
)
async def test_a_ping_is_answered_with_its_nonce(service: ServiceProcess, nonce: str) -> None:
    """Any JSON of up to 64 bytes comes back in the pong."""
    async with service.connect(subprotocols=[V1]) as client:
        await welcomed(client)
        await client.send(f'{{"type": "ping", "nonce": {nonce}}}')
        assert await receive_frame(client) == {"type": "pong", "nonce": json.loads(nonce)}


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("", "frame"),
        ("no JSON", "frame"),
        ("null", "frame"),
        ("17", "frame"),
        ('"ping"', "frame"),
        ("[]", "frame"),
        ('[{"type": "ping", "nonce": 1}]', "frame"),
        ('{"type": "ping", "nonce": 1', "frame"),
        ("[" * 60_000, "frame"),
        ('{"a":' * 10_000, "frame"),
        ("{}", "type"),
        ('{"nonce": 1}', "type"),
        ('{"type": null, "nonce": 1}', "type"),
        ('{"type": ["ping"], "nonce": 1}', "type"),
        ('{"type": "Ping", "nonce": 1}', "type"),
        ('{"type": "pong", "nonce": 1}', "type"),
        ('{"type": "\\ud800"}', "type"),
        ('{"type": "ping"}', "nonce"),
        ('{"type": "ping", "nonce": "' + "x" * 63 + '"}', "nonce"),
        ('{"type": "ping", "nonce": "' + "é" * 32 + '"}', "nonce"),
        ('{"type": "ping", "nonce": ' + "9" * 65 + "}", "nonce"),
        ('{"type": "ping", "nonce": "' + "x" * 60_000 + '"}', "nonce"),
        ('{"type": "ping", "nonce": ' + "[" * 33 + "]" * 33 + "}", "nonce"),
        ('{"type": "ping", "nonce": ' + "[" * 900 + "]" * 900 + "}", "nonce"),
    ],
    ids=lambda value: value[:40],
)
async def test_a_frame_that_makes_no_sense_is_refused_and_the_connection_stays(
    service: ServiceProcess, text: str, field: str
) -> None:
    """The client gets an error frame that names what is wrong, and can go on."""
    async with service.connect(subprotocols=[V1]) as client:
        await welcomed(client)
        await client.send(text)
        refused = await receive_frame(client)
        assert refused.keys() == {"type", "error"}
        assert refused["type"] == "error"
        assert_public_error(refused["error"], "VALIDATION_ERROR")
        assert refused["error"]["details"] == {"field": field}
        await client.send('{"type": "ping", "nonce": "on we go"}')
        assert await receive_frame(client) == {"type": "pong", "nonce": "on we go"}


@pytest.mark.parametrize("nonce", ["NaN", "Infinity", "1e999", '"\\ud800"', "9" * 5000])
async def test_a_nonce_that_is_no_json_is_refused_and_the_connection_stays(
    service: ServiceProcess, nonce: str
) -> None:
    """What no JSON parser, or no UTF-8, could give back is refused like any bad frame."""
    async with service.connect(subprotocols=[V1]) as client:
        await welcomed(client)
        await client.send(f'{{"type": "ping", "nonce": {nonce}}}')
        assert_public_error((await receive_frame(client))["error"], "VALIDATION_ERROR")
        await client.send('{"type": "ping", "nonce": "on we go"}')
        assert await receive_frame(client) == {"type": "pong", "nonce": "on we go"}


async def test_v1_hears_why_before_the_close(service: ServiceProcess) -> None:
    """A v1 client gets the error body as a frame before its connection is closed."""
    async with service.connect(subprotocols=[V1]) as client:
        await client.send(b"binary")
        close = await closed(client)
    last = json.loads(close.messages[-1])
    assert last["type"] == "error"
    assert_public_error(last["error"], "INVALID_REQUEST")


# Signs of life


@pytest.mark.parametrize("payload", [b"", b"x", b"\xff" * 125])
async def test_a_clients_ping_is_answered(service: ServiceProcess, payload: bytes) -> None:
    """A WebSocket ping gets its pong, payload and all, in both dialects."""
    for headers in ([], [("Sec-WebSocket-Protocol", V1)]):
        async with raw_websocket(service.port, token=token(), headers=headers) as client:
            await client.send(frame(Opcode.PING, payload))
            while (received := await client.receive()).opcode == Opcode.TEXT:
                pass
            assert (received.opcode, received.payload) == (Opcode.PONG, payload)


async def test_an_idle_v1_connection_has_a_heartbeat(lively_service: ServiceProcess) -> None:
    """As long as nothing else is sent, heartbeats show that the line is alive."""
    async with lively_service.connect(subprotocols=[V1]) as client:
        assert (await welcomed(client))["heartbeat_ms"] == PING_INTERVAL_S * 1000
        for _ in range(3):
            heartbeat = await receive_frame(client)
            assert heartbeat.keys() == {"type", "at"}
            assert heartbeat["type"] == "heartbeat"
            assert datetime.fromisoformat(heartbeat["at"]).utcoffset() is not None


async def receive_pings(client: RawWebSocket, count: int) -> list[tuple[int, bytes]]:
    """Answer the server's pings until there were so many; returns all else that came."""
    others: list[tuple[int, bytes]] = []
    while count:
        received = await client.receive()
        if received.opcode == Opcode.PING:
            count -= 1
            await client.send(frame(Opcode.PONG, received.payload))
        else:
            others.append((received.opcode, received.payload))
    return others


@pytest.mark.usefixtures("stream")
async def test_a_busy_v1_connection_has_no_heartbeat(lively_service: ServiceProcess) -> None:
    """While notifications flow there is no heartbeat, for as long as three would take."""
    headers = [("Sec-WebSocket-Protocol", V1)]
    async with raw_websocket(lively_service.port, token=token(), headers=headers) as client:
        received = await receive_pings(client, 4)
    types = [json.loads(payload)["type"] for _, payload in received]
    assert types[0] == "welcome"
    assert set(types[1:]) == {"notification"}


async def test_a_plain_connection_gets_nothing_but_pings(lively_service: ServiceProcess) -> None:
    """A plain client that answers the server's pings is kept, and hears nothing else."""
    async with raw_websocket(lively_service.port, token=token()) as client:
        assert await receive_pings(client, 8) == []


async def test_a_silent_peer_is_given_up(lively_service: ServiceProcess) -> None:
    """A client of which nothing is heard any more, not even a pong, is closed with 4008."""
    async with raw_websocket(lively_service.port, token=token()) as client:
        assert await raw_reason(client) == (4008, "TIMEOUT")
        await client.drained()


async def test_any_frame_is_a_sign_of_life(lively_service: ServiceProcess) -> None:
    """A client that sends texts but no pongs is not silent."""
    async with raw_websocket(lively_service.port, token=token()) as client:
        for _ in range(8):
            assert (await client.receive()).opcode == Opcode.PING
            await client.send(frame(Opcode.TEXT, b"here"))


async def first_text(port: int) -> bytes:
    """The payload of the first frame of a v1 connection."""
    headers = [("Sec-WebSocket-Protocol", V1)]
    async with raw_websocket(port, token=token(), headers=headers) as client:
        assert client.status == 101
        received = await client.receive()
        assert received.opcode == Opcode.TEXT
        return received.payload


async def test_nothing_comes_before_the_welcome(
    lively_service: ServiceProcess, redis_server: RedisServer
) -> None:
    """Where Redis takes its time, neither a ping nor a heartbeat gets ahead of the answer."""
    async with raw_websocket(lively_service.port, token=token()) as clock:
        redis_server.signal(signal.SIGSTOP)
        try:
            async with asyncio.TaskGroup() as tasks:
                opening = tasks.create_task(first_text(lively_service.port))
                await receive_pings(clock, 4)
                redis_server.signal(signal.SIGCONT)
        finally:
            redis_server.signal(signal.SIGCONT)
    assert json.loads(opening.result())["type"] == "welcome"
