"""Tickets: what a client that can only give a URL gets in exchange for its token."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Any, Final

import pytest
import pytest_asyncio
import websockets
from redis.asyncio import Redis
from websockets.asyncio.client import ClientConnection
from websockets.typing import Subprotocol

from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_server import RedisServer
from huleedu_service_libs.token_revocations import TokenRevocations
from tests.functional.closes import Close, assert_public_error, closed
from tests.functional.tokens import BAD_TOKENS
from tests.service_process import ServiceProcess, token

pytestmark = pytest.mark.asyncio(loop_scope="module")

V1: Final = "huleedu.notify.v1"
ORIGIN: Final = "https://app.example.org"
DEADLINE_S: Final = 20


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(redis_server: RedisServer) -> AsyncIterator[ServiceProcess]:
    settings = {"CORS_ORIGINS": json.dumps([ORIGIN, "https://*.school.example"])}
    async with ServiceProcess(redis_server.url, settings=settings) as process:
        yield process


async def asked(
    service: ServiceProcess,
    *,
    bearer: str | None = None,
    path: str = "/v1/tickets",
    method: str = "POST",
    headers: Mapping[str, str] | None = None,
) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Status, headers by lower-case name, and the JSON of the body."""
    authorization = {} if bearer is None else {"Authorization": f"Bearer {bearer}"}
    status, answered, body = await service.http(
        path, method=method, headers={"Content-Length": "0", **authorization, **(headers or {})}
    )
    return status, answered, json.loads(body) if body else {}


async def ticket(service: ServiceProcess, bearer: str | None = None) -> str:
    status, _, body = await asked(service, bearer=bearer or token())
    assert status == 201
    return str(body["ticket"])


def connect(service: ServiceProcess, query: str, **options: Any) -> websockets.connect:
    """A v1 client that has nothing but a URL."""
    return websockets.connect(
        f"{service.url}?{query}", subprotocols=[Subprotocol(V1)], **{"proxy": None, **options}
    )


async def refusal(service: ServiceProcess, query: str, **options: Any) -> Close:
    async with connect(service, query, **options) as client:
        return await closed(client)


def assert_unauthenticated(close: Close) -> None:
    assert close.code == 1008
    assert close.reason["error_code"] == "AUTHENTICATION_ERROR"


async def test_a_ticket_opens_a_connection(service: ServiceProcess, redis: Redis) -> None:
    """Whoever shows a token gets a ticket, and with that the notifications of the same user."""
    expires_at = int(time.time()) + 1800
    status, headers, body = await asked(service, bearer=token("teacher-7", exp=expires_at))
    assert status == 201
    assert body.keys() == {"ticket", "expires_in_ms"}
    assert 29_000 < body["expires_in_ms"] <= 30_000
    assert headers["cache-control"] == "no-store"
    async with connect(service, f"ticket={body['ticket']}") as tab:
        welcome = json.loads(await tab.recv())
        assert welcome["type"] == "welcome"
        assert welcome["user_id"] == "teacher-7"
        assert datetime.fromisoformat(welcome["token_expires_at"]).timestamp() == expires_at
        assert await redis.publish("ws:teacher-7", '{"event":"e","data":{}}') == 1
        assert json.loads(await tab.recv())["event"] == "e"


async def test_a_ticket_is_good_for_one_use(service: ServiceProcess) -> None:
    """A ticket that somebody finds in a log opens nothing any more."""
    query = f"ticket={await ticket(service)}"
    async with connect(service, query) as tab:
        await tab.recv()
        assert_unauthenticated(await refusal(service, query))
    assert_unauthenticated(await refusal(service, query))


async def test_of_many_that_show_a_ticket_at_once_one_gets_in(service: ServiceProcess) -> None:
    """Fifty clients with the same ticket are one client and forty-nine refusals."""
    query = f"ticket={await ticket(service)}"
    tabs = await asyncio.gather(*(connect(service, query) for _ in range(50)))
    try:
        outcomes = await asyncio.gather(*(outcome(tab) for tab in tabs))
    finally:
        await asyncio.gather(*(tab.close() for tab in tabs))
    assert sorted(outcomes) == ["invalid_ticket"] * 49 + ["welcome"]


async def outcome(tab: ClientConnection) -> str:
    """`welcome`, or why not."""
    first = json.loads(await tab.recv())
    return str(first["error"]["details"]["reason"] if first["type"] == "error" else first["type"])


@pytest.mark.parametrize(
    "query", ["ticket=x", f"ticket={'A' * 43}", "ticket=%00", "ticket=../../a"]
)
async def test_a_ticket_that_was_never_issued(service: ServiceProcess, query: str) -> None:
    """Guessing opens nothing."""
    assert_unauthenticated(await refusal(service, query))


async def test_a_ticket_does_not_last(redis_server: RedisServer, redis: Redis) -> None:
    """A ticket that is used too late is refused."""
    settings = {"WEBSOCKET_TICKET_LIFETIME": "0.3"}
    async with ServiceProcess(redis_server.url, settings=settings) as service:
        before = set(await redis.keys("*"))
        status, _, body = await asked(service, bearer=token())
        assert status == 201
        assert 0 < body["expires_in_ms"] <= 300
        async with asyncio.timeout(DEADLINE_S):
            while set(await redis.keys("*ticket*")) - before:
                pass
        assert_unauthenticated(await refusal(service, f"ticket={body['ticket']}"))


async def test_a_ticket_ends_with_its_token(service: ServiceProcess) -> None:
    """A ticket is no way to stay for longer than the token allows."""
    _, _, body = await asked(service, bearer=token(exp=int(time.time()) + 3))
    assert 0 < body["expires_in_ms"] <= 3_000


async def test_one_credential_at_a_time(service: ServiceProcess) -> None:
    """A ticket beside a token is refused, and is still good by itself afterwards."""
    first, second = await ticket(service), await ticket(service)
    bearer = {"Authorization": f"Bearer {token()}"}
    assert_unauthenticated(await refusal(service, f"ticket={first}", additional_headers=bearer))
    assert_unauthenticated(await refusal(service, f"ticket={first}&token={token()}"))
    assert_unauthenticated(await refusal(service, f"ticket={first}&ticket={second}"))
    for good in (first, second):
        async with connect(service, f"ticket={good}") as tab:
            assert json.loads(await tab.recv())["type"] == "welcome"


@pytest.mark.parametrize("wrong", sorted(name for name in BAD_TOKENS if "8 kB" not in name))
async def test_a_bad_token_gets_no_ticket(service: ServiceProcess, wrong: str) -> None:
    """What does not open a connection is no good for a ticket either."""
    bad, reason = BAD_TOKENS[wrong]
    status, headers, body = await asked(service, bearer=bad)
    assert status == 401
    assert headers["www-authenticate"] == "Bearer"
    assert headers["cache-control"] == "no-store"
    assert_public_error(body["error"], "AUTHENTICATION_ERROR")
    assert body["error"]["details"]["reason"] == reason


@pytest.mark.parametrize(
    ("query", "headers", "reason"),
    [
        ("", {}, "missing_token"),
        ("", {"Authorization": "Basic dTpw"}, "missing_token"),
        ("?token={}", {}, "credential_in_url"),
        ("?token={}", {"Authorization": "Bearer {}"}, "credential_in_url"),
        ("?ticket=x", {"Authorization": "Bearer {}"}, "credential_in_url"),
        (
            "",
            {"Authorization": "Bearer {}", "Sec-WebSocket-Protocol": "bearer.other"},
            "conflicting_credentials",
        ),
    ],
)
async def test_the_token_has_one_place(
    service: ServiceProcess, query: str, headers: dict[str, str], reason: str
) -> None:
    """A ticket is what keeps tokens out of URLs, so none is issued for a token in a URL."""
    bearer = token()
    status, _, body = await asked(
        service,
        path=f"/v1/tickets{query.format(bearer)}",
        headers={name: value.format(bearer) for name, value in headers.items()},
    )
    assert status == 401
    assert_public_error(body["error"], "AUTHENTICATION_ERROR")
    assert body["error"]["details"]["reason"] == reason


async def test_a_revoked_token(service: ServiceProcess, publisher: RedisClient) -> None:
    """Revoking a token ends what its ticket is good for, and there is no new one."""
    bearer = token("teacher-8", jti="to be revoked")
    issued = await ticket(service, bearer)
    await TokenRevocations(publisher, retention_s=60).revoke_token("to be revoked")
    async with asyncio.timeout(DEADLINE_S):
        while (answer := await asked(service, bearer=bearer))[0] == 201:
            pass
    status, _, body = answer
    assert status == 401
    assert body["error"]["details"]["reason"] == "token_revoked"
    assert_unauthenticated(await refusal(service, f"ticket={issued}"))


async def test_without_redis() -> None:
    """While Redis is away there are no tickets, which is not the client's fault."""
    async with RedisServer() as server, ServiceProcess(server.url) as service:
        await server.kill()
        status, headers, body = await asked(service, bearer=token())
        assert status == 503
        assert headers["cache-control"] == "no-store"
        assert_public_error(body["error"], "SERVICE_UNAVAILABLE")
        assert "redis://" not in json.dumps(body)
        await server.launch()


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_other_methods(service: ServiceProcess, method: str) -> None:
    """Tickets are made by POST alone."""
    status, headers, body = await asked(service, bearer=token(), method=method)
    assert status == 405
    assert "POST" in headers["allow"]
    assert_public_error(body["error"], "INVALID_REQUEST")


@pytest.mark.parametrize("origin", [ORIGIN, "https://a.school.example", f"{ORIGIN}:443"])
async def test_allowed_pages_may_ask(service: ServiceProcess, origin: str) -> None:
    """A page of an allowed origin may send its token, and may read every answer."""
    status, headers, _ = await asked(
        service,
        method="OPTIONS",
        headers={
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization",
        },
    )
    assert status == 204
    assert headers["access-control-allow-origin"] == origin
    assert headers["access-control-allow-methods"] == "POST"
    assert "authorization" in headers["access-control-allow-headers"].lower()
    assert headers["vary"] == "Origin"
    for bearer, expected in ((token(), 201), ("garbage", 401)):
        status, headers, _ = await asked(service, bearer=bearer, headers={"Origin": origin})
        assert status == expected
        assert headers["access-control-allow-origin"] == origin
        assert headers["vary"] == "Origin"
        assert "access-control-allow-credentials" not in headers


@pytest.mark.parametrize(
    "origin", ["null", "https://evil.example", "http://app.example.org", f"{ORIGIN}, {ORIGIN}", ""]
)
@pytest.mark.parametrize("method", ["OPTIONS", "POST"])
async def test_other_pages_may_not(service: ServiceProcess, origin: str, method: str) -> None:
    """A page of another origin gets no ticket, and its browser lets it read nothing."""
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    status, answered, body = await asked(service, bearer=token(), method=method, headers=headers)
    assert status == 403
    assert_public_error(body["error"], "AUTHORIZATION_ERROR")
    assert not [name for name in answered if name.startswith("access-control-")]
    assert answered["vary"] == "Origin"


async def test_programs_may_be_kept_out(redis_server: RedisServer) -> None:
    """Where clients without an origin are not admitted they get no ticket."""
    settings = {"WEBSOCKET_ALLOW_MISSING_ORIGIN": "false", "CORS_ORIGINS": json.dumps([ORIGIN])}
    async with ServiceProcess(redis_server.url, settings=settings) as service:
        status, _, _ = await asked(service, bearer=token())
        assert status == 403
        status, _, _ = await asked(service, bearer=token(), headers={"Origin": ORIGIN})
        assert status == 201


@pytest.mark.parametrize(
    ("header", "value"),
    [("X-Forwarded-For", "{}, 198.51.100.{}"), ("Forwarded", 'for={}, for="198.51.100.{}:4711"')],
)
async def test_one_address_gets_so_many(redis_server: RedisServer, header: str, value: str) -> None:
    """An address that asks too often is told when to come back, and no other one is."""
    settings = {
        "WEBSOCKET_ADDRESS_HANDSHAKES_PER_SECOND": "1",
        "WEBSOCKET_ADDRESS_HANDSHAKE_BURST": "30",
        "WEBSOCKET_TRUSTED_PROXIES": '["127.0.0.0/8"]',
        "WEBSOCKET_PROXY_HEADER": header,
    }

    async with ServiceProcess(redis_server.url, settings=settings) as service:

        async def ask(client: int, invented: int) -> tuple[int, dict[str, str], dict[str, Any]]:
            headers = {header: value.format(f"192.0.2.{invented}", client)}
            return await asked(service, bearer=token(), headers=headers)

        answers = await asyncio.gather(*(ask(1, invented) for invented in range(150)))
        refused = [answer for answer in answers if answer[0] != 201]
        # While they came the bucket filled by one a second.
        assert 30 <= len(answers) - len(refused) < 60
        for status, headers, body in refused:
            assert status == 429
            assert headers["retry-after"] == "1"
            assert_public_error(body["error"], "RATE_LIMIT")
        assert (await ask(2, 1))[0] == 201


async def test_strangers_can_not_change_their_address(redis_server: RedisServer) -> None:
    """Where no proxy is trusted, what a client says of its address counts for nothing."""
    settings = {
        "WEBSOCKET_ADDRESS_HANDSHAKES_PER_SECOND": "1",
        "WEBSOCKET_ADDRESS_HANDSHAKE_BURST": "10",
    }
    async with ServiceProcess(redis_server.url, settings=settings) as service:
        answers = await asyncio.gather(
            *(
                asked(
                    service,
                    bearer=token(),
                    headers={name: f"198.51.100.{n}", "Forwarded": f"for=198.51.100.{n}"},
                )
                for n in range(40)
                for name in ("X-Forwarded-For", "X-Real-IP")
            )
        )
        assert {status for status, _, _ in answers} == {201, 429}
