"""What holds whether or not the service has Hypercorn's transports to itself."""

import asyncio
import json
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_server import RedisServer
from tests.functional.closes import assert_public_error, closed, parsed_reason
from tests.functional.raw_websocket import Opcode, close_frame, frame, raw_websocket
from tests.functional.v1_tab import V1, publish, v1_tab
from tests.service_process import HYPERCORN, SERVE, ServiceProcess, receive_all, token

pytestmark = pytest.mark.asyncio(loop_scope="module")

FRAME_BURST = 200
LIMIT_BYTES = 65_536
SUBPROTOCOLS = [(), (V1,)]


WAYS = {
    "tuned": (HYPERCORN, "true"),
    "untuned": (HYPERCORN, "false"),
    "tuned on uvloop": (SERVE, "true"),
    "untuned on uvloop": (SERVE, "false"),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=WAYS)
async def service(
    redis_server: RedisServer, request: pytest.FixtureRequest
) -> AsyncIterator[ServiceProcess]:
    """The service with the tuning and without, on either event loop."""
    command, tuning = WAYS[request.param]
    settings = {"HYPERCORN_TUNING": tuning, "WEBSOCKET_FRAME_BURST": str(FRAME_BURST)}
    async with ServiceProcess(redis_server.url, command=command, settings=settings) as process:
        yield process


async def test_plain_tabs_get_every_byte_in_order(service: ServiceProcess, redis: Redis) -> None:
    """Three plain tabs get a thousand payloads once, in order, as they were published."""
    published = [f'{{"n": {n}, "å": "{"é" * (n % 7)}"}}' for n in range(1000)]
    async with service.connect() as a, service.connect() as b, service.connect() as c:
        pipeline = redis.pipeline(transaction=False)
        for text in published:
            pipeline.publish("ws:teacher-1", text)
        await pipeline.execute()
        for tab in (a, b, c):
            assert await receive_all(tab, len(published)) == published


async def test_v1_tabs_resume(service: ServiceProcess, publisher: RedisClient) -> None:
    """A v1 tab that comes back gets what it has missed, and goes on live."""
    cursor, *_ = await publish(publisher, "back", range(150))
    async with v1_tab(service, "back", cursor) as tab:
        assert tab.welcome["resumed"] is True
        assert await tab.numbers(149) == list(range(1, 150))
        await publish(publisher, "back", range(150, 400))
        assert await tab.numbers(250) == list(range(150, 400))


async def test_v1_frames_are_answered(service: ServiceProcess) -> None:
    """A ping gets its pong, nonsense an error, and the connection stays."""
    async with v1_tab(service, "teacher-1") as tab:
        await tab.connection.send("nonsense")
        assert_public_error((await tab.frame())["error"], "VALIDATION_ERROR")
        await tab.connection.send('{"type": "ping", "nonce": [1]}')
        assert await tab.frame() == {"type": "pong", "nonce": [1]}


@pytest.mark.parametrize("subprotocols", SUBPROTOCOLS)
async def test_refusal_has_a_code_and_a_reason(
    service: ServiceProcess, subprotocols: tuple[str, ...]
) -> None:
    """A refused client is accepted first, and then told why."""
    async with service.connect(bearer=token(exp=0), subprotocols=subprotocols) as client:
        close = await closed(client)
    assert (close.code, close.reason["message"]) == (1008, "Token has expired")
    types = [json.loads(message)["type"] for message in close.messages]
    assert types == (["error"] if subprotocols else [])


@pytest.mark.parametrize("subprotocols", SUBPROTOCOLS)
async def test_binary_is_not_spoken(service: ServiceProcess, subprotocols: tuple[str, ...]) -> None:
    """Binary frames end the connection with 1003, an empty one, too."""
    for payload in (b"", b"x"):
        async with service.connect(subprotocols=subprotocols) as client:
            await client.send(payload)
            close = await closed(client)
        assert (close.code, close.reason["error_code"]) == (1003, "INVALID_REQUEST")


async def test_oversize_text(service: ServiceProcess) -> None:
    """A text of the largest size is fine, and one byte more ends the connection with 1009."""
    async with service.connect() as client:
        await client.send("é" * (LIMIT_BYTES // 2))
        await (await client.ping())
        await client.send("é" * (LIMIT_BYTES // 2) + "x")
        close = await closed(client)
    assert (close.code, close.reason["error_code"]) == (1009, "INVALID_REQUEST")


async def test_texts_are_limited(service: ServiceProcess) -> None:
    """Too many texts end the connection with 4009."""
    async with raw_websocket(service.port, token=token()) as client:
        await client.send(frame(Opcode.TEXT, b"x") * (FRAME_BURST + 100))
        code, reason = await client.receive_close()
    assert (code, parsed_reason(reason)["error_code"]) == (4009, "RATE_LIMIT")


@pytest.mark.parametrize("code", [1000, 4321])
async def test_client_may_leave(service: ServiceProcess, code: int) -> None:
    """A client's close is answered with its code, and frees its place."""
    async with raw_websocket(service.port, token=token()) as client:
        await client.send(close_frame(code))
        assert (await client.receive()).payload == code.to_bytes(2)
        await client.drained()
    while (await service.metrics())["websocket_connections"]:
        pass


async def test_places_of_a_user(service: ServiceProcess) -> None:
    """A user's sixth tab is refused with 4000, until another one has gone, however it went."""
    tabs = [await service.connect("many") for _ in range(5)]
    async with service.connect("many") as sixth:
        assert (await closed(sixth)).code == 4000
    tabs.pop().transport.abort()
    while (await service.metrics())["websocket_connections"] == 5:
        pass
    async with service.connect("many") as sixth:
        await (await sixth.ping())
    await asyncio.gather(*(tab.close() for tab in tabs))


@pytest.mark.parametrize("subprotocols", SUBPROTOCOLS)
async def test_expiry(service: ServiceProcess, subprotocols: tuple[str, ...]) -> None:
    """A connection ends with its token."""
    bearer = token(exp=time.time() + 1)
    async with service.connect(bearer=bearer, subprotocols=subprotocols) as client:
        assert (await closed(client)).code == 1008
