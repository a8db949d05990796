"""Real redis-servers of every kind at hand, and ways to wait for what they do."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import pytest
from redis.asyncio import Redis

from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_server import (
    RedisServer,
    embedded_redis_server,
    installed_redis_server,
)

# Only a test that fails ever waits so long.
GIVE_UP_AFTER_S = 20.0

BINARIES = {"embedded": embedded_redis_server(), "installed": installed_redis_server()}
WANTED = [
    name
    for name, binary in BINARIES.items()
    # A developer's machine needs one kind of server; where CI decides, both have to be there.
    if name == "embedded" or binary is not None or os.environ.get("CI")
]

StartServer = Callable[..., RedisServer]
Until = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]
Next = Callable[[AsyncIterator[bytes]], Awaitable[bytes]]


@pytest.fixture(scope="session", params=WANTED)
def redis_binary(request: pytest.FixtureRequest) -> Path:
    binary = BINARIES[request.param]
    if binary is None:
        pytest.fail(f"no {request.param} redis-server on this machine")
    return binary


@pytest.fixture
def start_server(redis_binary: Path) -> StartServer:
    """`RedisServer` with the binary under test filled in."""
    return partial(RedisServer, redis_binary)


@pytest.fixture
async def server(start_server: StartServer) -> AsyncIterator[RedisServer]:
    async with start_server() as running:
        yield running


@pytest.fixture
async def client(server: RedisServer) -> AsyncIterator[RedisClient]:
    async with RedisClient(client_id="test", redis_url=server.url) as started:
        yield started


@pytest.fixture
async def admin(server: RedisServer) -> AsyncIterator[Redis]:
    """redis-py itself, to see the server from another side."""
    async with Redis.from_url(server.url, protocol=2) as connected:
        yield connected


@pytest.fixture
def until() -> Until:
    """Ask again and again, each time over the network, until the answer is yes."""

    async def ask(condition: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(GIVE_UP_AFTER_S):
            while not await condition():
                pass

    return ask


@pytest.fixture
def hear() -> Next:
    """The next payload of a subscription."""

    async def hear_next(subscription: AsyncIterator[bytes]) -> bytes:
        async with asyncio.timeout(GIVE_UP_AFTER_S):
            return await anext(subscription)

    return hear_next


HearAgain = Callable[[RedisClient, str, AsyncIterator[bytes]], Awaitable[bytes]]


@pytest.fixture
def hear_again() -> HearAgain:
    """Publish until the subscriber hears: the moment when a lost subscription is back."""

    async def publish_until_heard(
        publisher: RedisClient, channel: str, subscription: AsyncIterator[bytes]
    ) -> bytes:
        async with asyncio.timeout(GIVE_UP_AFTER_S), asyncio.TaskGroup() as tasks:

            async def first() -> bytes:
                return await anext(subscription)

            heard = tasks.create_task(first())
            while not heard.done():
                await publisher.publish(channel, b"again")
        return heard.result()

    return publish_until_heard


Logged = Callable[[str], AbstractContextManager["asyncio.Future[float]"]]


class _Signal(logging.Handler):
    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text
        self.seen_at = asyncio.get_running_loop().create_future()

    def emit(self, record: logging.LogRecord) -> None:
        if self._text in record.getMessage() and not self.seen_at.done():
            self.seen_at.set_result(asyncio.get_running_loop().time())


@contextmanager
def _logged(text: str) -> Iterator["asyncio.Future[float]"]:
    handler = _Signal(text)
    logger = logging.getLogger("huleedu_service_libs")
    logger.addHandler(handler)
    try:
        yield handler.seen_at
    finally:
        logger.removeHandler(handler)


@pytest.fixture
def logged() -> Logged:
    """A future of the event loop's time at which the library logged `text`."""
    return _logged
