"""What the service expects of a backplane: of Redis, and of its twin in the tests alike."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest

from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_server import RedisServer
from services.websocket_service.implementations.backplane import RedisBackplane
from services.websocket_service.protocols import BackplaneProtocol, BackplaneUnavailableError
from services.websocket_service.publication import Publication
from services.websocket_service.tests.fakes import GIVE_UP_AFTER_S, MemoryBackplane


@dataclass
class Line:
    """A backplane, and a way to publish on it to a user."""

    backplane: BackplaneProtocol
    publish: Callable[[str, bytes], Awaitable[int]]


async def memory_line() -> AsyncIterator[Line]:
    backplane = MemoryBackplane()

    async def publish(user_id: str, payload: bytes) -> int:
        return backplane.publish(user_id, payload)

    yield Line(backplane, publish)


async def redis_line() -> AsyncIterator[Line]:
    async with (
        RedisServer() as server,
        RedisClient(client_id="test", redis_url=server.url, payload_type=Publication) as client,
    ):
        backplane = RedisBackplane(client, timeout_s=GIVE_UP_AFTER_S)

        async def publish(user_id: str, payload: bytes) -> int:
            return await client.publish(backplane.get_user_channel(user_id), payload)

        yield Line(backplane, publish)


@pytest.fixture(params=[memory_line, redis_line], ids=["memory", "redis"])
async def line(request: pytest.FixtureRequest) -> AsyncIterator[Line]:
    async for opened in request.param():
        yield opened


async def hear(payloads: AsyncIterator[bytes]) -> bytes:
    async with asyncio.timeout(GIVE_UP_AFTER_S):
        return await anext(payloads)


async def test_entered_means_heard(line: Line) -> None:
    """What is published once a subscription is there arrives, in order and to the byte."""
    channel = line.backplane.get_user_channel("a")
    sent = [b"%d" % n for n in range(20)] + [b"", b"\xff\x00", "🦐".encode()]
    async with line.backplane.subscribe(channel) as payloads:
        for payload in sent:
            assert await line.publish("a", payload) == 1
        assert [await hear(payloads) for _ in sent] == sent


@pytest.mark.parametrize("user", ["a:b", "*", "}", "a b", "a\nb", "🦐", "x" * 10_000])
async def test_users_do_not_mix(line: Line, user: str) -> None:
    """Whatever a user is called, a notification reaches that user alone."""
    backplane = line.backplane
    async with (
        backplane.subscribe(backplane.get_user_channel(user)) as theirs,
        backplane.subscribe(backplane.get_user_channel("a")) as others,
    ):
        assert await line.publish("a", b"for a") == 1
        assert await line.publish(user, b"for the user") == 1
        assert await hear(theirs) == b"for the user"
        assert await hear(others) == b"for a"


async def test_payload_knows_when_it_came(line: Line) -> None:
    """The time that a payload spends in the process can be measured."""
    started_at = asyncio.get_running_loop().time()
    async with line.backplane.subscribe(line.backplane.get_user_channel("a")) as payloads:
        await line.publish("a", b"x")
        payload = await hear(payloads)
    assert isinstance(payload, Publication)
    assert started_at <= payload.received_at <= asyncio.get_running_loop().time()


async def test_redis_away() -> None:
    """A Redis that cannot be reached is reported as that, for subscriptions and for health."""
    async with RedisClient(
        client_id="test", redis_url="redis://127.0.0.1:1", timeout_s=0.05
    ) as client:
        backplane = RedisBackplane(client, timeout_s=1)
        assert not backplane.hears
        with pytest.raises(BackplaneUnavailableError):
            await backplane.ping()
        with pytest.raises(BackplaneUnavailableError):
            async with backplane.subscribe("ws:a"):
                pass
        assert client.subscription_statistics().subscriptions == 0


async def test_twin_can_be_away_too() -> None:
    """The twin fails as Redis does."""
    backplane = MemoryBackplane()
    backplane.available = False
    with pytest.raises(BackplaneUnavailableError):
        async with backplane.subscribe("ws:a"):
            pass
    assert backplane.subscriptions == 0


async def test_redis_is_heard() -> None:
    """While Redis answers, the service is ready for notifications."""
    async with (
        RedisServer() as server,
        RedisClient(client_id="test", redis_url=server.url) as client,
    ):
        backplane = RedisBackplane(client, timeout_s=GIVE_UP_AFTER_S)
        await backplane.ping()
        async with backplane.subscribe("ws:a"):
            assert backplane.hears
