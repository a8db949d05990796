"""permessage-deflate: off unless it is set, and harmless where it is."""

import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from redis.asyncio import Redis
from websockets.asyncio.client import ClientConnection
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory

from huleedu_service_libs.redis_server import RedisServer
from services.websocket_service.deflate import deflated
from tests.functional.closes import closed
from tests.functional.raw_websocket import Opcode, frame, raw_websocket
from tests.service_process import ServiceProcess, token

pytestmark = pytest.mark.asyncio(loop_scope="module")

V1 = "huleedu.notify.v1"
CHANNEL = "ws:teacher-1"
OFFER = ("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits")
COMPRESSED = 4
"""The first reserved bit of a frame."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def compressing(redis_server: RedisServer) -> AsyncIterator[ServiceProcess]:
    """A service that compresses for those who want it."""
    settings = {"WEBSOCKET_COMPRESSION": "true"}
    async with ServiceProcess(redis_server.url, settings=settings) as process:
        yield process


def agreed(client: ClientConnection) -> list[str]:
    """The extensions that are in use."""
    return [extension.name for extension in client.protocol.extensions]


@pytest.mark.parametrize("subprotocols", [[], [V1]], ids=["plain", "v1"])
async def test_client_that_offers_it(
    compressing: ServiceProcess, redis: Redis, subprotocols: list[str]
) -> None:
    """A client that offers compression reads the same notifications, long and short."""
    offers = [ClientPerMessageDeflateFactory(client_max_window_bits=True)]
    async with compressing.connect(
        subprotocols=subprotocols, extensions=offers, compression=None
    ) as client:
        assert agreed(client) == ["permessage-deflate"]
        if subprotocols:
            assert json.loads(await client.recv())["type"] == "welcome"
            await client.send(json.dumps({"type": "ping", "nonce": 1, "pad": "x" * 5000}))
            assert json.loads(await client.recv()) == {"type": "pong", "nonce": 1}
        for length in (0, 10, 1_000, 100_000):
            payload = {"event": "a", "data": "é" * length}
            await redis.publish(CHANNEL, json.dumps(payload, ensure_ascii=False))
            received = json.loads(await client.recv())
            assert {**payload, **({"type": "notification"} if subprotocols else {})} == received


async def test_neighbours_of_both_kinds(compressing: ServiceProcess, redis: Redis) -> None:
    """A client that offers it and one that does not read the same."""
    text = json.dumps({"event": "a", "data": "x" * 1000})
    async with (
        compressing.connect() as compressed,
        compressing.connect(compression=None) as plain,
    ):
        assert agreed(compressed) == ["permessage-deflate"]
        assert agreed(plain) == []
        await redis.publish(CHANNEL, text)
        assert await compressed.recv() == await plain.recv() == text


async def test_off_by_default(service: ServiceProcess, redis: Redis) -> None:
    """Without the setting nobody is compressed for, whoever offers it, and nothing else changes."""
    async with service.connect() as client:
        assert agreed(client) == []
        await redis.publish(CHANNEL, "hello")
        assert await client.recv() == "hello"


async def test_control_frames_between_compressed_fragments(compressing: ServiceProcess) -> None:
    """A ping in the middle of a compressed message disturbs neither."""
    data = deflated(json.dumps({"type": "ping", "nonce": 7, "pad": "x" * 500}).encode())
    headers = [OFFER, ("Sec-WebSocket-Protocol", V1)]
    async with raw_websocket(compressing.port, token=token(), headers=headers) as client:
        assert (await client.receive()).opcode == Opcode.TEXT
        await client.send(
            frame(Opcode.TEXT, data[:9], fin=False, reserved=COMPRESSED)
            + frame(Opcode.PING, b"!")
            + frame(Opcode.CONTINUATION, data[9:], fin=True)
        )
        answers = [await client.receive(), await client.receive()]
    assert {answer.opcode for answer in answers} == {Opcode.PONG, Opcode.TEXT}
    assert b'{"type":"pong","nonce":7}' in [answer.payload for answer in answers]


async def test_bomb(compressing: ServiceProcess) -> None:
    """A frame of 97 kB that would inflate to 100 MB ends its own connection with 1009."""
    async with compressing.connect() as client:
        await client.send("\x00" * 100_000_000)
        close = await closed(client)
    assert (close.code, close.reason["error_code"]) == (1009, "INVALID_REQUEST")


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(Opcode.TEXT, b"\xff\xff\xff", reserved=COMPRESSED), 1002),
        (frame(Opcode.PING, b"", reserved=COMPRESSED), 1002),
        (frame(Opcode.TEXT, b"x", reserved=2), 1002),
    ],
    ids=["no compressed message", "compressed ping", "another bit"],
)
async def test_invalid(compressing: ServiceProcess, sent: bytes, code: int) -> None:
    """What the extension does not allow ends the connection as any other violation does."""
    async with raw_websocket(compressing.port, token=token(), headers=[OFFER]) as client:
        await client.send(sent)
        assert (await client.receive_close())[0] == code
