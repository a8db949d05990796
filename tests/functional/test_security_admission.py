"""Who is let in before anybody looks at the token: by the page, the address, and the crowd."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Final

import pytest
import pytest_asyncio

from huleedu_service_libs.redis_server import RedisServer
from tests.functional.closes import closed
from tests.functional.outcomes import V1
from tests.functional.raw_websocket import raw_websocket
from tests.service_process import ServiceProcess, token

pytestmark = pytest.mark.asyncio(loop_scope="module")

ORIGINS: Final = ["https://app.example.org", "https://*.school.example", "http://localhost:3000"]
BURST: Final = 5
SLOWLY: Final = {
    "WEBSOCKET_ADDRESS_HANDSHAKES_PER_SECOND": "1",
    "WEBSOCKET_ADDRESS_HANDSHAKE_BURST": str(BURST),
}
FORWARDED: Final = "X-Forwarded-For"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(redis_server: RedisServer) -> AsyncIterator[ServiceProcess]:
    settings = {"CORS_ORIGINS": json.dumps(ORIGINS)}
    async with ServiceProcess(redis_server.url, settings=settings) as process:
        yield process


async def answer_to(
    service: ServiceProcess, headers: Sequence[tuple[str, str]], user: str = "teacher-1"
) -> str:
    """The first frame's type, or the error code in it."""
    wanted = [*headers, ("Sec-WebSocket-Protocol", V1)]
    async with raw_websocket(service.port, token=token(user), headers=wanted) as client:
        assert client.status == 101
        first = json.loads((await client.receive()).payload)
        return str(first["type"] if first["type"] == "welcome" else first["error"]["code"])


@pytest.mark.parametrize(
    "origin",
    [
        "https://app.example.org",
        "HTTPS://APP.example.ORG",
        "https://app.example.org:443",
        "https://a.school.example",
        "https://a.b.school.example",
        "http://localhost:3000",
    ],
)
async def test_pages_that_are_listed(service: ServiceProcess, origin: str) -> None:
    """A page of a listed origin, or of a subdomain where that is meant, may connect."""
    assert await answer_to(service, [("Origin", origin)]) == "welcome"


@pytest.mark.parametrize(
    "origins",
    [
        ["null"],
        ["NULL"],
        [""],
        ["*"],
        ["https://*.school.example"],
        ["https://*"],
        ["http://app.example.org"],
        ["https://app.example.org:8443"],
        ["https://app.example.org:80"],
        ["https://app.example.org."],
        ["https://app.example.org/"],
        ["https://app.example.org/path"],
        ["https://app.example.org?a=b"],
        ["https://app.example.org#a"],
        ["https://app.example.org@evil.example"],
        ["https://evil.example@app.example.org"],
        ["https://app.example.org.evil.example"],
        ["https://evil-app.example.org"],
        ["https://evilapp.example.org"],
        ["https://example.org"],
        ["https://app.example.orgx"],
        ["https://app-example.org"],
        ["https://appxexample.org"],
        ["https://school.example"],
        ["https://evilschool.example"],
        ["https://.school.example"],
        ["https://a..school.example"],
        ["https://a.school.example.evil.example"],
        ["https://a.school.example:8443"],
        ["http://localhost"],
        ["http://localhost:30000"],
        ["http://127.0.0.1:3000"],
        ["http://localhost:3000:443"],
        ["app.example.org"],
        ["//app.example.org"],
        ["https:app.example.org"],
        ["https:///app.example.org"],
        ["https://app.example.org https://evil.example"],
        ["https://app.example.org,https://app.example.org"],
        ["https://app.example.org, https://evil.example"],
        ["https://app%2eexample.org"],
        ["https://app.ex\u00e4mple.org"],
        ["wss://app.example.org"],
        ["file://"],
        ["chrome-extension://abcdefghijklmnop"],
        ["https://app.example.org", "https://app.example.org"],
        ["https://app.example.org", "https://evil.example"],
        ["https://evil.example", "https://app.example.org"],
        ["null", "https://app.example.org"],
    ],
    ids=repr,
)
async def test_pages_that_only_look_so(service: ServiceProcess, origins: list[str]) -> None:
    """Every other page is refused, however much its origin looks like one of ours."""
    headers = [("Origin", origin) for origin in origins]
    assert await answer_to(service, headers) == "AUTHORIZATION_ERROR"


async def test_programs_can_be_kept_out(redis_server: RedisServer) -> None:
    """Where clients without an origin are not wanted, only listed pages connect."""
    settings = {"CORS_ORIGINS": json.dumps(ORIGINS), "WEBSOCKET_ALLOW_MISSING_ORIGIN": "false"}
    async with ServiceProcess(redis_server.url, settings=settings) as strict:
        assert await answer_to(strict, []) == "AUTHORIZATION_ERROR"
        assert await answer_to(strict, [("Origin", ORIGINS[0])]) == "welcome"


async def flood(
    service: ServiceProcess, headers: Sequence[Sequence[tuple[str, str]]]
) -> Counter[str]:
    """What becomes of handshakes that come at once, each of another user."""
    return Counter(
        await asyncio.gather(
            *(answer_to(service, sent, f"flood-{n}") for n, sent in enumerate(headers))
        )
    )


def assert_limited(outcomes: Counter[str], attempts: int) -> None:
    """One burst and what a slow machine lets come afterwards, but not nearly all."""
    assert outcomes.keys() == {"welcome", "RATE_LIMIT"}
    assert outcomes.total() == attempts
    assert BURST <= outcomes["welcome"] < attempts / 2


async def test_one_address_behind_a_trusted_proxy(redis_server: RedisServer) -> None:
    """Each client of the proxy has a limit of its own, and can't talk itself out of it."""
    settings = {**SLOWLY, "WEBSOCKET_TRUSTED_PROXIES": '["127.0.0.0/8", "10.0.0.0/8"]'}
    async with ServiceProcess(redis_server.url, settings=settings) as service:
        invented = [[(FORWARDED, f"192.0.2.{n}, 198.51.100.1, 10.0.0.1")] for n in range(60)]
        assert_limited(await flood(service, invented), 60)
        in_two_lines = [(FORWARDED, "192.0.2.9"), (FORWARDED, "198.51.100.1")]
        assert await answer_to(service, in_two_lines) == "RATE_LIMIT"
        assert await answer_to(service, [(FORWARDED, "198.51.100.2")]) == "welcome"
        # An IPv6 host has 64 bits of addresses to itself, an IPv4 one in IPv6's clothes has one.
        network = [[(FORWARDED, f"2001:db8:0:1:{n:x}::{n:x}")] for n in range(60)]
        assert_limited(await flood(service, network), 60)
        assert await answer_to(service, [(FORWARDED, "[2001:db8:0:1:ffff::1]:443")]) == "RATE_LIMIT"
        assert await answer_to(service, [(FORWARDED, "2001:db8:0:2::1")]) == "welcome"
        assert await answer_to(service, [(FORWARDED, "::ffff:198.51.100.1")]) == "RATE_LIMIT"


async def test_strangers_can_not_say_where_they_are(redis_server: RedisServer) -> None:
    """What a client says of its address counts for nothing without a proxy that is trusted."""
    settings = {**SLOWLY, "WEBSOCKET_TRUSTED_PROXIES": '["10.0.0.0/8"]'}
    async with ServiceProcess(redis_server.url, settings=settings) as service:
        names = (FORWARDED, "Forwarded", "X-Real-IP", "True-Client-IP", "CF-Connecting-IP")
        invented = [
            [(name, f"for=192.0.2.{n}" if name == "Forwarded" else f"192.0.2.{n}")]
            for n in range(20)
            for name in names
        ]
        assert_limited(await flood(service, invented), len(invented))


async def test_an_address_that_asks_too_often_is_told_so(redis_server: RedisServer) -> None:
    """It is closed with a code of its own, and asked to back off."""
    async with ServiceProcess(redis_server.url, settings=SLOWLY) as service:
        await flood(service, [[]] * 30)
        async with service.connect() as client:
            close = await closed(client)
    assert (close.code, close.reason["error_code"]) == (4009, "RATE_LIMIT")


async def test_a_crowd_comes_back_bit_by_bit(redis_server: RedisServer) -> None:
    """Those who are too many at once are given different times to come back."""
    settings = {"WEBSOCKET_MAX_HANDSHAKES_PER_SECOND": "1", "WEBSOCKET_HANDSHAKE_BURST": str(BURST)}
    delays: list[int] = []

    async def come(service: ServiceProcess, number: int) -> str:
        async with service.connect(f"user-{number}", subprotocols=[V1]) as client:
            first = json.loads(await client.recv())
            if first["type"] != "welcome":
                close = await closed(client)
                assert (close.code, close.reason["error_code"]) == (1013, "CONNECTION_ERROR")
                delays.append(close.reason["retry_after_ms"])
            return str(first["type"])

    async with ServiceProcess(redis_server.url, settings=settings) as service:
        outcomes = Counter(await asyncio.gather(*(come(service, n) for n in range(60))))
    assert outcomes["welcome"] >= BURST
    assert len(delays) > 30
    assert all(1000 <= delay <= 3000 for delay in delays)
    assert len(set(delays)) > len(delays) / 2
