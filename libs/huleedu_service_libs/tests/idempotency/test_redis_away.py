"""What Redis does not answer costs protection, and never an event."""

import asyncio
import json
import signal
from collections.abc import Awaitable, Callable

import pytest

from huleedu_service_libs.event_claims import EventClaims
from huleedu_service_libs.event_utils import generate_deterministic_event_id
from huleedu_service_libs.idempotency_v2 import (
    ConfirmIdempotency,
    IdempotencyConfig,
    IdempotentConsumer,
    idempotent_consumer,
)
from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_server import RedisServer
from libs.huleedu_service_libs.tests.idempotency.conftest import Record, StartServer, delivery, raw

CONFIG = IdempotencyConfig("result_service")
KEY = "huleedu:idempotency:v2:result_service:essay_graded_v1:" + generate_deterministic_event_id(
    raw()
)
Away = Callable[[RedisServer], Awaitable[None]]


async def kill(server: RedisServer) -> None:
    await server.kill()


async def hang(server: RedisServer) -> None:
    server.signal(signal.SIGSTOP)


def impatient(server: RedisServer) -> RedisClient:
    return RedisClient(client_id="result_service", redis_url=server.url, timeout_s=0.3)


def worker(
    redis: RedisClient, meanwhile: Callable[[], Awaitable[object]], *, fails: bool = False
) -> IdempotentConsumer[Record, int]:
    """A handler during which something happens; its result counts its runs."""
    runs = 0

    @idempotent_consumer(redis, CONFIG)
    async def handle(_message: Record, *, confirm_idempotency: ConfirmIdempotency) -> int:
        nonlocal runs
        runs += 1
        await meanwhile()
        if fails:
            raise ValueError("the handler's own")
        await confirm_idempotency()
        return runs

    return handle


async def nothing() -> None:
    """Nothing happens."""


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("away", [kill, hang])
async def test_away_from_the_start(
    start_server: StartServer, caplog: pytest.LogCaptureFixture, away: Away
) -> None:
    """While Redis is away each delivery is handled once, and the log says so once."""
    async with start_server() as server, impatient(server) as redis:
        await away(server)
        handle = worker(redis, nothing)
        assert await handle(delivery(raw())) == 1
        assert [KEY in line for line in warnings(caplog)] == [True]
        assert await handle(delivery(raw())) == 2


@pytest.mark.parametrize("away", [kill, hang])
async def test_failing_handler_while_away(
    start_server: StartServer, caplog: pytest.LogCaptureFixture, away: Away
) -> None:
    """A handler's own error is the caller's also while Redis is away."""
    async with start_server() as server, impatient(server) as redis:
        await away(server)
        with pytest.raises(ValueError, match="the handler's own"):
            await worker(redis, nothing, fails=True)(delivery(raw()))
        assert len(warnings(caplog)) == 1


@pytest.mark.parametrize("away", [kill, hang])
async def test_away_when_confirming(
    start_server: StartServer, caplog: pytest.LogCaptureFixture, away: Away
) -> None:
    """Work that can't be confirmed is done all the same."""
    async with start_server() as server, impatient(server) as redis:
        assert await worker(redis, lambda: away(server))(delivery(raw())) == 1
        assert [KEY in line for line in warnings(caplog)] == [True]


@pytest.mark.parametrize("away", [kill, hang])
async def test_away_when_releasing(
    start_server: StartServer, caplog: pytest.LogCaptureFixture, away: Away
) -> None:
    """A claim that can't be released hides nothing of the handler's error."""
    async with start_server() as server, impatient(server) as redis:
        with pytest.raises(ValueError, match="the handler's own") as raised:
            await worker(redis, lambda: away(server), fails=True)(delivery(raw()))
        assert raised.value.__cause__ is None
        assert [KEY in line for line in warnings(caplog)] == [True]


async def test_confirmed_when_redis_is_back(start_server: StartServer) -> None:
    """An event that could not be claimed is a duplicate once its work was confirmed."""
    async with start_server() as server, impatient(server) as redis:
        await server.kill()
        handle = worker(redis, server.launch)
        assert await handle(delivery(raw())) == 1
        assert json.loads(await redis.get(KEY) or "null")["status"] == "completed"
        assert await handle(delivery(raw())) is None


async def test_restart_between_failure_and_redelivery(start_server: StartServer) -> None:
    """A claim that Redis has kept over a restart is no reason to lose the event."""
    options = {"appendonly": "yes", "appendfsync": "always"}
    async with start_server(options=options) as server, impatient(server) as redis:
        happens = [server.kill]

        async def once() -> None:
            if happens:
                await happens.pop()()

        handled = []

        @idempotent_consumer(redis, CONFIG)
        async def handle(message: Record, *, confirm_idempotency: ConfirmIdempotency) -> None:
            handled.append(message)
            await once()
            if not server.is_running:
                raise ValueError("the handler's own")
            await confirm_idempotency()

        with pytest.raises(ValueError, match="the handler's own"):
            await handle(delivery(raw()))
        await server.launch()
        assert json.loads(await redis.get(KEY) or "null")["status"] == "processing"
        await handle(delivery(raw()))
        assert json.loads(await redis.get(KEY) or "null")["status"] == "completed"
        assert len(handled) == 2


async def test_claim_that_came_late(start_server: StartServer) -> None:
    """A claim that a hung Redis takes afterwards does not turn the redelivery into a duplicate."""
    async with start_server() as server, impatient(server) as redis:
        await redis.ping()
        server.signal(signal.SIGSTOP)

        async def wake() -> None:
            server.signal(signal.SIGCONT)
            while await redis.get(KEY) is None:
                pass

        with pytest.raises(ValueError, match="the handler's own"):
            await worker(redis, wake, fails=True)(delivery(raw()))
        assert await redis.get(KEY) is None


async def test_claim_of_another(start_server: StartServer) -> None:
    """Who could not claim an event leaves alone what another one has claimed meanwhile."""
    async with start_server() as server, impatient(server) as redis, impatient(server) as another:
        await server.kill()

        async def claimed_elsewhere() -> None:
            await server.launch()
            await another.set_if_not_exists(KEY, "another's")

        with pytest.raises(ValueError, match="the handler's own"):
            await worker(redis, claimed_elsewhere, fails=True)(delivery(raw()))
        assert await another.get(KEY) == "another's"


class Unheard(RedisClient):
    """Redis does what it is asked, and its answer is long in coming."""

    def __init__(self, redis_url: str) -> None:
        super().__init__(client_id="unheard", redis_url=redis_url)
        self.claimed = asyncio.Event()

    async def set_if_not_exists(self, key: str, value: str, ttl_seconds: int | None = None) -> bool:
        await super().set_if_not_exists(key, value, ttl_seconds)
        self.claimed.set()
        return await asyncio.Event().wait()


async def test_cancelled_while_claiming(server: RedisServer, redis: RedisClient) -> None:
    """A delivery that is cancelled before Redis has answered leaves no claim behind."""
    async with Unheard(server.url) as unheard:
        delivered = asyncio.create_task(worker(unheard, nothing)(delivery(raw())))
        await unheard.claimed.wait()
        assert await redis.get(KEY) is not None
        delivered.cancel()
        with pytest.raises(asyncio.CancelledError):
            await delivered
    assert await redis.get(KEY) is None


class Undeleting(RedisClient):
    """The first deletion is long in coming."""

    def __init__(self, redis_url: str) -> None:
        super().__init__(client_id="undeleting", redis_url=redis_url)
        self.asked = asyncio.Event()

    async def delete_key(self, key: str) -> int:
        if self.asked.is_set():
            return await super().delete_key(key)
        self.asked.set()
        await asyncio.Event().wait()
        return 0


async def test_cancelled_while_releasing(server: RedisServer) -> None:
    """A consumer that is stopped while it gives an event back can take it again."""
    async with Undeleting(server.url) as redis:
        handle = worker(redis, nothing, fails=True)
        delivered = asyncio.create_task(handle(delivery(raw())))
        await redis.asked.wait()
        delivered.cancel()
        with pytest.raises(asyncio.CancelledError):
            await delivered
        with pytest.raises(ValueError, match="the handler's own"):
            await handle(delivery(raw()))
        assert await redis.get(KEY) is None


@pytest.mark.parametrize("away", [kill, hang])
async def test_cancelled_while_away(start_server: StartServer, away: Away) -> None:
    """A cancelled handler ends in time, whatever Redis does."""
    async with start_server() as server, impatient(server) as redis:
        started = asyncio.Event()

        async def wait() -> None:
            await away(server)
            started.set()
            await asyncio.Event().wait()

        delivered = asyncio.create_task(worker(redis, wait)(delivery(raw())))
        await started.wait()
        delivered.cancel()
        async with asyncio.timeout(20):
            with pytest.raises(asyncio.CancelledError):
                await delivered


async def test_claim_that_has_lapsed(redis: RedisClient) -> None:
    """A handler that fails after five minutes leaves the claim of another one alone."""
    now = 1000.0

    @idempotent_consumer(redis, CONFIG, clock=lambda: now)
    async def handle(
        _message: Record, until: float, *, confirm_idempotency: ConfirmIdempotency
    ) -> None:
        nonlocal now
        now = until
        # Redis forgets the claim, and another delivery makes one.
        await redis.setex(KEY, 300, "another's")
        raise ValueError(f"confirm with {confirm_idempotency}")

    with pytest.raises(ValueError, match="confirm with"):
        await handle(delivery(raw()), now + 300)
    assert await redis.get(KEY) == "another's"
    await redis.delete(KEY)
    with pytest.raises(ValueError, match="confirm with"):
        await handle(delivery(raw()), now + 299.9)
    assert await redis.get(KEY) is None


async def test_claims_are_not_remembered_for_ever() -> None:
    """A consumer that fails for hours without Redis remembers five minutes of it."""
    now = 0.0
    async with RedisClient(client_id="test", redis_url="redis://127.0.0.1:1") as redis:
        claims = EventClaims(redis, clock=lambda: now)
        for number in range(100):
            now += 30
            claim = claims.on(f"key-{number}", 60)
            assert await claim.take()
            await claims.release(claim)
            assert len(claims) <= 11
        assert len(claims) >= 9


async def test_client_that_was_not_started() -> None:
    """A mistake in the service is not taken for a Redis that is away."""
    handle = worker(RedisClient(client_id="test"), nothing)
    with pytest.raises(RuntimeError, match="not started"):
        await handle(delivery(raw()))
