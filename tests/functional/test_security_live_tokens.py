"""How long an open connection lasts: as long as its token, or the one that took its place."""

import json
import time
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, Final

import pytest
import pytest_asyncio
from redis.asyncio import Redis
from websockets.asyncio.client import ClientConnection

from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_server import RedisServer
from huleedu_service_libs.token_revocations import TokenRevocations
from tests.functional.closes import Close, assert_public_error, closed
from tests.functional.outcomes import V1
from tests.functional.tokens import BAD_TOKENS, MESSAGES
from tests.functional.v1_tab import Tab, publish
from tests.service_process import ServiceProcess, token

pytestmark = pytest.mark.asyncio(loop_scope="module")

GRACE_S: Final = 0.3


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(redis_server: RedisServer) -> AsyncIterator[ServiceProcess]:
    settings = {"WEBSOCKET_TOKEN_GRACE_PERIOD": str(GRACE_S)}
    async with ServiceProcess(redis_server.url, settings=settings) as process:
        yield process


def token_for(life_s: float, user: str = "teacher-1", **changes: Any) -> str:
    return token(user, exp=time.time() + life_s, **changes)


async def welcomed(client: ClientConnection) -> Tab:
    tab = Tab(client, json.loads(await client.recv()))
    assert tab.welcome["type"] == "welcome"
    return tab


async def authenticate(tab: Tab, bearer: str) -> None:
    await tab.connection.send(json.dumps({"type": "authenticate", "token": bearer}))


def assert_ended_by(close: Close, code: str, why: str) -> None:
    """The last frame says why in full, the close frame in short."""
    frame = json.loads(close.messages[-1])
    assert frame["type"] == "error"
    assert_public_error(frame["error"], code)
    assert frame["error"]["details"] == {"reason": why}
    assert (close.code, close.reason["error_code"]) == (1008, code)


async def test_notice_renewal_and_end(service: ServiceProcess, publisher: RedisClient) -> None:
    """A client is told of the expiry, goes on with another token, and is ended with that one."""
    async with service.connect(bearer=token_for(2, "renewer"), subprotocols=[V1]) as client:
        tab = await welcomed(client)
        notice = await tab.frame()
        assert notice["type"] == "token_expiring"
        assert 0 < notice["expires_in_ms"] <= 1000
        expires_at = time.time() + 3.6
        await authenticate(tab, token("renewer", exp=expires_at))
        refreshed = await tab.frame()
        assert refreshed["type"] == "token_refreshed"
        assert datetime.fromisoformat(refreshed["token_expires_at"]).timestamp() == pytest.approx(
            expires_at
        )
        await publish(publisher, "renewer", [1])
        assert await tab.numbers(1) == [1]
        # Half of the second life is past the first one's end and its grace period.
        assert (await tab.frame())["type"] == "token_expiring"
        await publish(publisher, "renewer", [2])
        assert await tab.numbers(1) == [2]
        close = await closed(client)
    assert time.time() >= expires_at + GRACE_S
    assert_ended_by(close, "AUTHENTICATION_ERROR", "token_expired")


async def test_renewal_in_the_grace_period(redis_server: RedisServer, redis: Redis) -> None:
    """A v1 client may renew its token shortly after the expiry; a plain one is closed at once."""
    settings = {"WEBSOCKET_TOKEN_GRACE_PERIOD": "20"}
    async with ServiceProcess(redis_server.url, settings=settings) as service:
        bearer = token_for(2)
        async with (
            service.connect(bearer=bearer, subprotocols=[V1]) as client,
            service.connect(bearer=bearer) as plain,
        ):
            tab = await welcomed(client)
            close = await closed(plain)
            assert (close.code, close.reason["message"]) == (1008, "Token has expired")
            assert close.messages == []
            assert (await tab.frame())["type"] == "token_expiring"
            await authenticate(tab, token())
            assert (await tab.frame())["type"] == "token_refreshed"
            await redis.publish("ws:teacher-1", '{"event": "e"}')
            assert (await tab.frame())["event"] == "e"


async def test_a_token_that_lives_shorter(service: ServiceProcess) -> None:
    """The new token counts alone: one that lives shorter ends the connection sooner."""
    async with service.connect(bearer=token_for(3600), subprotocols=[V1]) as client:
        tab = await welcomed(client)
        await authenticate(tab, token_for(0.4))
        assert (await tab.frame())["type"] == "token_refreshed"
        assert_ended_by(await closed(client), "AUTHENTICATION_ERROR", "token_expired")


@pytest.mark.parametrize("other", ["student-1", "teacher-10", "Teacher-1", "teacher-1 ", "*"])
async def test_a_token_of_another_user(service: ServiceProcess, redis: Redis, other: str) -> None:
    """Nobody becomes somebody else on an open connection: it ends, with nothing of the other's."""
    async with service.connect(bearer=token(), subprotocols=[V1]) as client:
        tab = await welcomed(client)
        await authenticate(tab, token(other))
        for _ in range(10):
            await redis.publish(f"ws:{other}", '{"event": "secret"}')
        close = await closed(client)
    assert_ended_by(close, "AUTHORIZATION_ERROR", "other_user")
    assert "secret" not in str(close.messages)


@pytest.mark.parametrize("wrong", sorted(BAD_TOKENS))
async def test_a_bad_token_ends_the_connection(service: ServiceProcess, wrong: str) -> None:
    """What is refused in a handshake ends a connection when it comes in a frame."""
    bad, reason = BAD_TOKENS[wrong]
    async with service.connect(bearer=token(wrong), subprotocols=[V1]) as client:
        tab = await welcomed(client)
        await authenticate(tab, bad)
        close = await closed(client)
    assert_ended_by(close, "AUTHENTICATION_ERROR", reason)
    assert close.reason["message"] in MESSAGES[reason]


async def test_a_revoked_token_takes_no_place(
    service: ServiceProcess, publisher: RedisClient
) -> None:
    """A revoked token is no way to go on, and what it would have replaced ends with it."""
    await TokenRevocations(publisher, retention_s=60).revoke_token("revoked-before")
    async with service.connect(bearer=token(), subprotocols=[V1]) as client:
        tab = await welcomed(client)
        await authenticate(tab, token(jti="revoked-before"))
        assert_ended_by(await closed(client), "AUTHENTICATION_ERROR", "token_revoked")


async def test_what_replaced_a_token_is_what_can_be_revoked(
    service: ServiceProcess, publisher: RedisClient
) -> None:
    """To revoke the old token does nothing to a connection that has another one since."""
    revocations = TokenRevocations(publisher, retention_s=60)
    async with service.connect(bearer=token(jti="first"), subprotocols=[V1]) as client:
        tab = await welcomed(client)
        await authenticate(tab, token(jti="second"))
        assert (await tab.frame())["type"] == "token_refreshed"
        await revocations.revoke_token("first")
        # Heard before the next one: the connection outlives it.
        async with service.connect(bearer=token(jti="third"), subprotocols=[V1]) as another:
            await welcomed(another)
            await revocations.revoke_token("third")
            assert_ended_by(await closed(another), "AUTHENTICATION_ERROR", "token_revoked")
        await client.send('{"type": "ping", "nonce": 1}')
        assert await tab.frame() == {"type": "pong", "nonce": 1}
        await revocations.revoke_token("second")
        assert_ended_by(await closed(client), "AUTHENTICATION_ERROR", "token_revoked")


async def test_a_flood_of_tokens(service: ServiceProcess) -> None:
    """Tokens that come while one is being judged are answered, and the connection goes on."""
    async with service.connect(bearer=token(), subprotocols=[V1]) as client:
        tab = await welcomed(client)
        frame = json.dumps({"type": "authenticate", "token": token()})
        for _ in range(100):
            await client.send(frame)
        await client.send('{"type": "ping", "nonce": "end"}')
        answers: list[dict[str, Any]] = []
        while not answers or answers[-1]["type"] != "pong":
            answers.append(await tab.frame())
        answers += [await tab.frame() for _ in range(101 - len(answers))]
    kinds = [answer["type"] for answer in answers]
    assert kinds.count("token_refreshed") >= 1
    assert kinds.count("token_refreshed") + kinds.count("error") == 100
    codes = {answer["error"]["code"] for answer in answers if answer["type"] == "error"}
    assert codes <= {"RATE_LIMIT"}
