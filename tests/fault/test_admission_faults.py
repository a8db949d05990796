"""How many connections a user may have, whatever happens to the processes and to Redis."""

import asyncio
import json
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Final

from redis.asyncio import Redis
from websockets.asyncio.client import ClientConnection

from huleedu_service_libs.connection_leases import ConnectionLeases
from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_server import RedisServer
from tests.fault.peers import V1, assert_come_back_later, assert_nothing_went_wrong, ending, until
from tests.service_process import STOP_TIMEOUT_S, ServiceProcess

LIMIT: Final = 5
LEASE_S: Final = 2
ATTEMPTS: Final = 200
USER: Final = "teacher-1"
KEYS: Final = "connections:*"


@asynccontextmanager
async def two_services(
    redis_server: RedisServer, **settings: str
) -> AsyncIterator[tuple[ServiceProcess, ServiceProcess]]:
    both = {"WEBSOCKET_LEASE_DURATION": str(LEASE_S), **settings}
    async with (
        ServiceProcess(redis_server.url, settings=both) as one,
        ServiceProcess(redis_server.url, settings=both) as other,
    ):
        yield one, other


async def attempt(
    stack: AsyncExitStack, service: ServiceProcess, user: str = USER
) -> tuple[str, ClientConnection]:
    """Try to open a connection, which stays open; `welcome`, or the error code."""
    client = await stack.enter_async_context(
        service.connect(user, subprotocols=[V1], open_timeout=None)
    )
    first = json.loads(await client.recv())
    return first["type"] if first["type"] == "welcome" else first["error"]["code"], client


async def close_codes(clients: list[ClientConnection]) -> Counter[int]:
    return Counter([(await ending(client)).code for client in clients])


async def test_200_attempts_at_once(redis_server: RedisServer) -> None:
    """Of 200 clients that try at once on two processes exactly five get in, again and again."""
    async with two_services(redis_server) as services:
        for _ in range(3):
            async with AsyncExitStack() as stack:
                attempts = await asyncio.gather(
                    *(attempt(stack, services[n % 2]) for n in range(ATTEMPTS))
                )
                outcomes = Counter(outcome for outcome, _ in attempts)
                assert outcomes == {"welcome": LIMIT, "QUOTA_EXCEEDED": ATTEMPTS - LIMIT}
                refused = [client for outcome, client in attempts if outcome != "welcome"]
                assert await close_codes(refused) == {4000: ATTEMPTS - LIMIT}
        for service in services:
            assert_nothing_went_wrong(service.output())


async def test_places_of_a_killed_process(redis_server: RedisServer) -> None:
    """They lapse soon; until then the user may try again shortly, and is not told to stop."""
    async with two_services(redis_server) as (killed, survivor), AsyncExitStack() as stack:
        for _ in range(LIMIT):
            assert (await attempt(stack, killed))[0] == "welcome"
        assert (await attempt(stack, survivor))[0] == "QUOTA_EXCEEDED"
        killed.signal_all(signal.SIGKILL)
        await killed.wait()
        async with RedisClient(client_id="operator", redis_url=redis_server.url) as client:
            leases = await ConnectionLeases(client, duration_s=LEASE_S).of_user(USER)
        assert len(leases) == LIMIT
        latest = datetime.now(UTC) + timedelta(seconds=LEASE_S)
        assert all(lease.ends_at <= latest for lease in leases)
        seen: list[str] = []

        async def is_let_in() -> bool:
            outcome, client = await attempt(stack, survivor)
            seen.append(outcome)
            if outcome == "CONNECTION_ERROR":
                assert_come_back_later(await ending(client), 1013)
            return outcome == "welcome"

        await until(is_let_in)
        assert set(seen) == {"CONNECTION_ERROR", "welcome"}
        for _ in range(LIMIT - 1):
            assert (await attempt(stack, survivor))[0] == "welcome"
        assert (await attempt(stack, survivor))[0] == "QUOTA_EXCEEDED"


async def test_place_that_was_just_given_back(redis_server: RedisServer) -> None:
    """Who closes a tab and opens one at once is let in, whichever process gets it."""
    async with two_services(redis_server) as (one, other), AsyncExitStack() as stack:
        held = [(await attempt(stack, one))[1] for _ in range(LIMIT)]
        for _ in range(10):
            await held.pop(0).close()
            outcome, client = await attempt(stack, other if len(held) % 2 else one)
            assert outcome == "welcome"
            held.append(client)


async def test_redis_comes_back_empty(redis_server: RedisServer) -> None:
    """Connections that outlived the loss count again as soon as their processes have said so."""
    async with two_services(redis_server) as services, AsyncExitStack() as stack:
        held = [(await attempt(stack, services[n % 2]))[1] for n in range(LIMIT)]
        await redis_server.kill()
        await redis_server.launch()
        async with Redis(port=redis_server.port) as redis:

            async def all_count() -> bool:
                counted = [await redis.zcard(key) async for key in redis.scan_iter(KEYS)]
                return counted == [LIMIT]

            await until(all_count)
        for service in services:
            await service.wait_for_status("/readyz", 200)
            assert (await attempt(stack, service))[0] == "QUOTA_EXCEEDED"
        await held.pop().close()

        async def is_let_in() -> bool:
            return (await attempt(stack, services[0]))[0] == "welcome"

        await until(is_let_in)
        for client in held:
            await (await client.ping())


async def test_redis_hangs(redis_server: RedisServer) -> None:
    """Who comes then is to try later; neither a close nor a shutdown waits for Redis."""
    async with two_services(redis_server) as (one, other):
        async with one.connect(USER) as leaver, other.connect(USER, subprotocols=[V1]) as stayer:
            redis_server.signal(signal.SIGSTOP)
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await leaver.close()
                async with one.connect("new", subprotocols=[V1]) as newcomer:
                    assert_come_back_later(await ending(newcomer), 1013)
                assert await one.terminate() == 0
                assert await other.terminate() == 0
            assert_come_back_later(await ending(stayer), 1012)
        redis_server.signal(signal.SIGCONT)
        for service in (one, other):
            assert_nothing_went_wrong(service.output())
