"""Real redis-servers of every kind at hand, and ways to wait for what they do."""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from functools import partial
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_server import RedisServer
from huleedu_service_libs.redis_subscription_canary import CANARY_PREFIX

# Only a test that fails ever waits so long.
GIVE_UP_AFTER_S = 20.0

StartServer = Callable[..., RedisServer]
Until = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]
Next = Callable[[AsyncIterator[bytes]], Awaitable[bytes]]


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


Channels = Callable[[], Awaitable[list[bytes]]]


@pytest.fixture
def channels(admin: Redis) -> Channels:
    """What Redis has subscribers for, in order, without the canaries'."""

    async def of_subscribers() -> list[bytes]:
        names = [name for name in await admin.pubsub_channels() if isinstance(name, bytes)]
        return sorted(name for name in names if not name.startswith(CANARY_PREFIX.encode()))

    return of_subscribers


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


class Additions:
    """Entries that Redis has acknowledged, in their order."""

    def __init__(self) -> None:
        self.acknowledged: list[str] = []
        self._grown = asyncio.Event()

    def add(self, entry: str) -> None:
        self.acknowledged.append(entry)
        self._grown.set()

    async def more(self) -> int:
        """Wait for some more; how many there were before."""
        before = len(self.acknowledged)
        async with asyncio.timeout(GIVE_UP_AFTER_S):
            while len(self.acknowledged) < before + 50:
                self._grown.clear()
                await self._grown.wait()
        return before


Adding = Callable[[Callable[[str], Awaitable[object]]], AbstractAsyncContextManager[Additions]]


@pytest.fixture
def adding() -> Adding:
    """Within it, many at once `push` entries, each one once, and go on when that fails."""

    @asynccontextmanager
    async def keep_adding(push: Callable[[str], Awaitable[object]]) -> AsyncIterator[Additions]:
        additions = Additions()
        stop = asyncio.Event()

        async def work(worker: int) -> None:
            for number in itertools.count():
                if stop.is_set():
                    return
                try:
                    await push(f"{worker}-{number}")
                except RedisError:
                    continue
                additions.add(f"{worker}-{number}")

        async with asyncio.TaskGroup() as workers:
            for worker in range(8):
                workers.create_task(work(worker))
            yield additions
            stop.set()

    return keep_adding
