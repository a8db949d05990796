"""A revoked token ends its connections and opens none, in every process and after every restart."""

import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final
from uuid import uuid4

import pytest
import pytest_asyncio

from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_server import RedisServer
from huleedu_service_libs.testing.polling import until
from huleedu_service_libs.testing.tcp_proxy import TcpProxy
from huleedu_service_libs.token_revocations import TokenRevocations
from tests.functional.closes import Close, closed
from tests.functional.outcomes import V1, WELCOME, outcome
from tests.service_process import ServiceProcess, token

pytestmark = pytest.mark.asyncio(loop_scope="module")

PERSISTENT: Final = {"appendonly": "yes", "appendfsync": "always"}
REVOKED: Final = "1008 token_revoked"
UNKNOWN_FOR_NOW: Final = "1013 CONNECTION_ERROR"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def two_services(
    redis_server: RedisServer,
) -> AsyncIterator[tuple[ServiceProcess, ServiceProcess]]:
    settings = {"WEBSOCKET_MAX_CONNECTIONS_PER_USER": "10"}
    async with (
        ServiceProcess(redis_server.url, settings=settings) as one,
        ServiceProcess(redis_server.url, settings=settings) as other,
    ):
        yield one, other


def revocations_of(client: RedisClient) -> TokenRevocations:
    """What the identity service has."""
    return TokenRevocations(client, retention_s=3600)


@asynccontextmanager
async def identity_service(redis_server: RedisServer) -> AsyncIterator[TokenRevocations]:
    async with RedisClient(client_id="identity", redis_url=redis_server.url) as client:
        yield revocations_of(client)


def assert_revoked(close: Close) -> None:
    assert (close.code, close.reason["error_code"]) == (1008, "AUTHENTICATION_ERROR")
    assert close.reason["message"] == "Token was revoked"


@pytest.mark.parametrize("by", ["jti", "user"])
async def test_live_connections_end(
    two_services: tuple[ServiceProcess, ServiceProcess], publisher: RedisClient, by: str
) -> None:
    """What was revoked ends in both processes and both dialects; what was not goes on."""
    user, jti, now = str(uuid4()), str(uuid4()), int(time.time())
    bearer = token(user, jti=jti, iat=now - 60)
    # Somebody else's, whose names look alike.
    spared = [token(f"{user}x", jti=jti.upper(), iat=now - 60)]
    if by == "jti":
        spared.append(token(user, jti=f"{jti}x", iat=now - 60))
    async with AsyncExitStack() as stack:
        ending = [
            await stack.enter_async_context(service.connect(bearer=bearer, subprotocols=dialect))
            for service in two_services
            for dialect in ([], [V1])
        ]
        staying = [
            await stack.enter_async_context(service.connect(bearer=other))
            for service in two_services
            for other in spared
        ]
        if by == "jti":
            await revocations_of(publisher).revoke_token(jti)
        else:
            await revocations_of(publisher).revoke_user(user)
        for client in ending:
            assert_revoked(await closed(client))
        for client in staying:
            await (await client.ping())
    for service in two_services:
        assert await outcome(service, bearer) == REVOKED
        assert [await outcome(service, other) for other in spared] == [WELCOME] * len(spared)


async def test_a_user_signs_in_again(
    two_services: tuple[ServiceProcess, ServiceProcess], publisher: RedisClient
) -> None:
    """After all of a user's tokens were revoked one that is issued later is as good as ever."""
    user = str(uuid4())
    before, later = token(user, iat=time.time() - 5), token(user, iat=time.time() - 1)
    ageless = token(user)
    revocation = await revocations_of(publisher).revoke_user(user)
    assert revocation.issued_before is not None
    signed_in_again = token(user, iat=revocation.issued_before.timestamp())
    for service in two_services:
        for old in (before, later, ageless):
            assert await outcome(service, old) == REVOKED
        assert await outcome(service, signed_in_again) == WELCOME


async def test_a_revocation_outlives_everything() -> None:
    """It counts in processes that start afterwards, also when Redis was killed in between."""
    jti, user = str(uuid4()), str(uuid4())
    revoked = [token(jti=jti), token(user, iat=time.time() - 1)]
    async with RedisServer(options=PERSISTENT) as server:
        async with ServiceProcess(server.url) as first:
            async with identity_service(server) as revocations:
                await revocations.revoke_token(jti)
                await revocations.revoke_user(user)
            async with ServiceProcess(server.url) as second:
                for service in (first, second):
                    assert [await outcome(service, bearer) for bearer in revoked] == [REVOKED] * 2
            await server.kill()
            await server.launch()
            await first.wait_for_status("/readyz", 200)
            assert [await outcome(first, bearer) for bearer in revoked] == [REVOKED] * 2
        async with ServiceProcess(server.url) as third:
            assert [await outcome(third, bearer) for bearer in revoked] == [REVOKED] * 2
            assert await outcome(third, token()) == WELCOME


async def test_while_a_process_is_cut_off(redis_server: RedisServer) -> None:
    """A process that Redis does not reach lets nobody in, and hears of it when it does again."""
    jti, user = str(uuid4()), str(uuid4())
    bearer = token(user, jti=jti)
    async with (
        TcpProxy(redis_server.port) as proxy,
        ServiceProcess(redis_server.url) as near,
        ServiceProcess(proxy.url) as far,
        near.connect(bearer=bearer) as here,
        far.connect(bearer=bearer) as there,
        far.connect() as spared,
        far.connect(bearer=token(user), subprotocols=[V1]) as renewing,
        identity_service(redis_server) as revocations,
    ):
        await proxy.refuse()
        await proxy.cut()
        await far.wait_for_status("/readyz", 503)
        await revocations.revoke_token(jti)
        assert_revoked(await closed(here))
        assert await outcome(near, bearer) == REVOKED
        assert await outcome(far, bearer) == UNKNOWN_FOR_NOW
        await (await there.ping())
        renewal = json.dumps({"type": "authenticate", "token": bearer})
        assert json.loads(await renewing.recv())["type"] == WELCOME
        await renewing.send(renewal)
        assert json.loads(await renewing.recv())["error"]["code"] == "CONNECTION_ERROR"
        await proxy.accept()
        assert_revoked(await closed(there))
        await renewing.send(renewal)
        assert_revoked(await closed(renewing))
        await (await spared.ping())

        async def serves() -> bool:
            return await outcome(far, token()) == WELCOME

        await until(serves)
        assert await outcome(far, bearer) == REVOKED
