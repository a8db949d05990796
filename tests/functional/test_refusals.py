"""Who is turned away, and that each of them is told why in a way that a browser shows."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Mapping
from uuid import uuid4

import pytest
import pytest_asyncio
import websockets
from redis.asyncio import Redis
from websockets.asyncio.client import ClientConnection
from websockets.typing import Subprotocol

from huleedu_service_libs.redis_server import RedisServer
from tests.functional.closes import Close, assert_public_error, closed, parsed_reason
from tests.functional.raw_websocket import Frame, Opcode, RawWebSocket, raw_websocket
from tests.functional.tokens import BAD_TOKENS, MESSAGES, WAYS, by_subprotocol_in_v1
from tests.service_process import (
    HYPERCORN,
    REPO,
    SECRET,
    START_TIMEOUT_S,
    ServiceProcess,
    free_port,
    token,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

V1 = "huleedu.notify.v1"
ORIGIN = "https://app.example.org"
# As a subprotocol they come back in the answer, where the library takes 8,192 bytes a line.
TOO_LONG_FOR_THE_LIBRARY = {"8 kB of nothing", "8 kB, foreign secret"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(redis_server: RedisServer) -> AsyncIterator[ServiceProcess]:
    """A service for one origin and two tabs per user."""
    settings = {
        "CORS_ORIGINS": json.dumps([ORIGIN]),
        "WEBSOCKET_MAX_CONNECTIONS_PER_USER": "2",
    }
    async with ServiceProcess(redis_server.url, settings=settings) as process:
        yield process


async def raw_close(client: RawWebSocket) -> Close:
    code, reason = await client.receive_close()
    return Close(code, parsed_reason(reason), [])


def assert_unauthenticated(close: Close, message: str) -> None:
    assert close.code == 1008
    assert close.reason["error_code"] == "AUTHENTICATION_ERROR"
    # Where the reason has no room for all of it, its beginning.
    assert message.startswith(close.reason["message"])


async def assert_works(client: ClientConnection, redis: Redis, user: str = "teacher-1") -> None:
    """The connection is open, and the user's notifications come over it."""
    published = str(uuid4())
    assert await redis.publish(f"ws:{user}", published) >= 1
    assert await client.recv() == published


@pytest.mark.parametrize("way", WAYS)
async def test_a_good_token_is_taken_whichever_way_it_comes(
    service: ServiceProcess, redis: Redis, way: str
) -> None:
    """A token in the query, in the header or as a subprotocol opens the connection."""
    async with WAYS[way](service, token()) as client:
        await assert_works(client, redis)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("wrong", sorted(BAD_TOKENS.keys() - TOO_LONG_FOR_THE_LIBRARY))
async def test_a_bad_token_is_refused_with_a_reason(
    service: ServiceProcess, wrong: str, way: str
) -> None:
    """Whatever is wrong with a token, the client sees 1008 and what it was."""
    bad, reason = BAD_TOKENS[wrong]
    async with WAYS[way](service, bad) as client:
        close = await closed(client)
    assert_unauthenticated(close, MESSAGES[reason])
    assert close.messages == []


@pytest.mark.parametrize("wrong", sorted(TOO_LONG_FOR_THE_LIBRARY))
@pytest.mark.parametrize("way", ["query", "header", "subprotocol"])
async def test_a_long_bad_token_is_refused_with_a_reason(
    service: ServiceProcess, wrong: str, way: str
) -> None:
    """8 kB of token are refused as any other bad token is, as long as HTTP can carry them."""
    bad, reason = BAD_TOKENS[wrong]
    target = f"/ws?token={bad}" if way == "query" else "/ws"
    headers = {
        "query": (),
        "header": (("Authorization", f"Bearer {bad}"),),
        "subprotocol": (("Sec-WebSocket-Protocol", f"bearer.{bad}"),),
    }[way]
    async with raw_websocket(service.port, target=target, headers=headers) as client:
        assert_unauthenticated(await raw_close(client), MESSAGES[reason])


@pytest.mark.parametrize("wrong", sorted(BAD_TOKENS.keys() - TOO_LONG_FOR_THE_LIBRARY))
async def test_v1_says_more_before_it_closes(service: ServiceProcess, wrong: str) -> None:
    """A v1 client gets the whole error body as a frame, then the close."""
    bad, reason = BAD_TOKENS[wrong]
    async with by_subprotocol_in_v1(service, bad) as client:
        assert client.subprotocol == V1
        close = await closed(client)
    assert_unauthenticated(close, MESSAGES[reason])
    [text] = close.messages
    frame = json.loads(text)
    assert frame.keys() == {"type", "error"}
    assert frame["type"] == "error"
    assert_public_error(frame["error"], "AUTHENTICATION_ERROR")
    assert frame["error"]["message"] == MESSAGES[reason]
    assert frame["error"]["details"] == {"reason": reason}
    correlation_id = frame["error"]["correlation_id"]
    assert close.reason["correlation_id"].replace("-", "") == correlation_id.replace("-", "")


@pytest.mark.parametrize(
    ("target", "headers"),
    [
        ("/ws", ()),
        ("/ws?", ()),
        ("/ws?token", ()),
        ("/ws?token=", ()),
        ("/ws?Token=x&tokens=x&x=token", ()),
        ("/ws", (("Authorization", "Bearer"),)),
        ("/ws", (("Authorization", "Basic dXNlcjpwYXNzd29yZA=="),)),
        ("/ws", (("Sec-WebSocket-Protocol", "bearer."),)),
        ("/ws", (("Sec-WebSocket-Protocol", V1),)),
    ],
)
async def test_no_token_is_refused_with_a_reason(
    service: ServiceProcess, target: str, headers: tuple[tuple[str, str], ...]
) -> None:
    """Whoever brings no token is told that it is missing."""
    async with raw_websocket(service.port, target=target, headers=headers) as client:
        assert_unauthenticated(await raw_close(client), "Missing token")


@pytest.mark.parametrize(
    "value", ["%00", "%", "%zz", "%F0%9F%98%80", "%ED%A0%80", "%ff%fe", "+", "a%0D%0Ab", "%22%5C"]
)
async def test_garbage_in_the_query_is_refused_with_a_reason(
    service: ServiceProcess, value: str
) -> None:
    """Bytes that can be no token are refused like a bad token."""
    async with raw_websocket(service.port, target=f"/ws?token={value}") as client:
        assert_unauthenticated(await raw_close(client), MESSAGES["invalid_token"])


@pytest.mark.parametrize(
    "headers",
    [
        (("Authorization", "Bearer \u00e9\u00ff"),),
        (("Authorization", "Bearer a b"),),
        (("Sec-WebSocket-Protocol", "bearer.\u00e9\u00ff"),),
        (("Sec-WebSocket-Protocol", "bearer.a b"),),
    ],
)
async def test_garbage_in_a_header_is_refused_with_a_reason(
    service: ServiceProcess, headers: tuple[tuple[str, str], ...]
) -> None:
    """So are characters that no header should have."""
    async with raw_websocket(service.port, headers=headers) as client:
        assert_unauthenticated(await raw_close(client), MESSAGES["invalid_token"])


async def test_two_different_tokens_are_refused(service: ServiceProcess) -> None:
    """Two credentials in one request, both good, are one too many."""
    one, other = token(jti="1"), token(jti="2")
    header = ("Authorization", f"Bearer {one}")
    subprotocol = ("Sec-WebSocket-Protocol", f"bearer.{one}")
    for target, headers in (
        (f"/ws?token={other}", [header]),
        (f"/ws?token={other}", [subprotocol]),
        (f"/ws?token={one}&token={other}", []),
        (f"/ws?token={one}&%74oken={other}", []),
        ("/ws", [header, ("Sec-WebSocket-Protocol", f"bearer.{other}")]),
        ("/ws", [header, ("Authorization", f"Bearer {other}")]),
        ("/ws", [("Sec-WebSocket-Protocol", f"bearer.{one}, bearer.{other}")]),
    ):
        async with raw_websocket(service.port, target=target, headers=headers) as client:
            assert_unauthenticated(await raw_close(client), "Two different credentials")


async def test_the_same_token_twice_is_one_token(service: ServiceProcess, redis: Redis) -> None:
    """A client that sends one token in each way is let in."""
    one = token()
    async with websockets.connect(
        f"{service.url}?token={one}",
        additional_headers={"Authorization": f"Bearer {one}"},
        subprotocols=[Subprotocol(f"bearer.{one}")],
        proxy=None,
    ) as client:
        await assert_works(client, redis)


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "Bearer "])
async def test_the_scheme_is_read_leniently(
    service: ServiceProcess, redis: Redis, scheme: str
) -> None:
    """The case of `Bearer` and the blanks after it don't matter, as HTTP has it."""
    authorization = {"Authorization": f"{scheme} {token()}"}
    async with websockets.connect(
        service.url, additional_headers=authorization, proxy=None
    ) as client:
        await assert_works(client, redis)


async def test_another_scheme_is_no_credential(service: ServiceProcess, redis: Redis) -> None:
    """A proxy's `Authorization: Basic` does not get into the way of a token in the query."""
    async with websockets.connect(
        f"{service.url}?token={token()}",
        additional_headers={"Authorization": "Basic dXNlcjpwYXNzd29yZA=="},
        proxy=None,
    ) as client:
        await assert_works(client, redis)


@pytest.mark.parametrize("bearer", [token(), token(exp=0), "garbage"])
async def test_a_browser_gets_one_of_its_own_subprotocols_back(
    service: ServiceProcess, bearer: str
) -> None:
    """Asking for `bearer.<jwt>` alone, a browser gets just that; else it would show 1006."""
    async with WAYS["subprotocol"](service, bearer) as client:
        assert client.subprotocol == f"bearer.{bearer}"


async def test_an_unknown_subprotocol_is_not_selected(service: ServiceProcess) -> None:
    """Of several subprotocols the server selects the one that it speaks, or the credential."""
    bearer = f"bearer.{token()}"
    for offered, selected in (
        (["chat", bearer], bearer),
        (["chat", bearer, V1], V1),
        ([bearer, V1, "chat"], V1),
    ):
        async with websockets.connect(
            service.url, subprotocols=[Subprotocol(name) for name in offered], proxy=None
        ) as client:
            assert client.subprotocol == selected


async def test_subprotocols_may_come_in_several_headers(service: ServiceProcess) -> None:
    """RFC 6455 lets a client spread its subprotocols over header lines."""
    bearer = f"bearer.{token()}"
    for lines, selected in (
        ([V1, bearer], V1),
        ([bearer, V1], V1),
        ([bearer, "chat"], bearer),
        (["chat", bearer], bearer),
    ):
        headers = [("Sec-WebSocket-Protocol", line) for line in lines]
        async with raw_websocket(service.port, headers=headers) as client:
            assert client.status == 101
            assert client.headers["sec-websocket-protocol"] == selected


@pytest.mark.parametrize(
    "offer",
    [
        "permessage-deflate",
        "permessage-deflate; client_max_window_bits",
        'permessage-deflate; server_max_window_bits="10"',
        "permessage-deflate; server_max_window_bits=many",
        "permessage-deflate; client_max_window_bits=",
        "x-webkit-deflate-frame",
        ",;=",
        "\u00e9",
    ],
)
async def test_every_extension_is_declined(
    service: ServiceProcess, redis: Redis, offer: str
) -> None:
    """Whatever extensions a client offers, it gets its connection without them."""
    headers = [("Sec-WebSocket-Extensions", offer)]
    async with raw_websocket(service.port, token=token(), headers=headers) as client:
        assert client.status == 101
        assert "sec-websocket-extensions" not in client.headers
        assert await redis.publish("ws:teacher-1", "{}") == 1
        assert await client.receive() == Frame(Opcode.TEXT, b"{}")


async def test_the_correlation_id_of_the_client_is_in_the_reason(service: ServiceProcess) -> None:
    """An id that the client sends, in a header or in the query, comes back in the close."""
    sent = uuid4()
    for target, headers in (
        ("/ws", [("X-Correlation-ID", str(sent))]),
        (f"/ws?correlation_id={sent}", []),
    ):
        async with raw_websocket(service.port, target=target, headers=headers) as client:
            assert (await raw_close(client)).reason["correlation_id"] == str(sent)
    async with raw_websocket(service.port, headers=[("X-Correlation-ID", "<mine>")]) as client:
        assert (await raw_close(client)).reason["correlation_id"] != "<mine>"


@pytest.mark.parametrize(
    ("target", "headers"),
    [
        (f"/ws?token={'a' * 200_000}", ()),
        ("/ws", (("Authorization", f"Bearer {'a' * 200_000}"),)),
        ("/ws", (("Sec-WebSocket-Protocol", f"bearer.{'a' * 200_000}"),)),
    ],
)
async def test_more_than_http_can_carry_is_answered_with_a_status(
    service: ServiceProcess, target: str, headers: tuple[tuple[str, str], ...]
) -> None:
    """A handshake beyond the server's limit gets a 4xx and not a dropped connection."""
    async with raw_websocket(service.port, target=target, headers=headers) as client:
        assert 400 <= client.status < 500


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "http://app.example.org",
        f"{ORIGIN}.evil.example",
        f"{ORIGIN}:8443",
        "null",
        "",
    ],
)
async def test_a_page_of_another_origin_is_refused(service: ServiceProcess, origin: str) -> None:
    """A page that is not ours can't use its visitor's token: 1008, and no reconnect."""
    headers = [("Origin", origin)]
    async with raw_websocket(service.port, token=token(), headers=headers) as client:
        close = await raw_close(client)
    assert close.code == 1008
    assert close.reason["error_code"] == "AUTHORIZATION_ERROR"


@pytest.mark.parametrize("origin", [ORIGIN, ORIGIN.upper(), None])
async def test_our_own_pages_and_programs_are_let_in(
    service: ServiceProcess, redis: Redis, origin: str | None
) -> None:
    """A listed origin may connect, and so may a client that has none: it is no browser."""
    headers = {"Origin": origin} if origin else {}
    async with websockets.connect(
        f"{service.url}?token={token()}", additional_headers=headers, proxy=None
    ) as client:
        await assert_works(client, redis)


async def test_one_user_has_a_limited_number_of_connections(
    service: ServiceProcess, redis: Redis
) -> None:
    """The third tab of two is refused with 4000; the others work on, and other users get in."""
    async with service.connect("crowd") as first, service.connect("crowd"):
        async with service.connect("crowd") as third:
            close = await closed(third)
        assert close.code == 4000
        assert close.reason["error_code"] == "QUOTA_EXCEEDED"
        await assert_works(first, redis, "crowd")
        async with service.connect("somebody-else") as other:
            await assert_works(other, redis, "somebody-else")


async def test_a_closed_tab_makes_room_for_another(service: ServiceProcess, redis: Redis) -> None:
    """Once a tab is closed the user can open another, again and again."""
    async with service.connect("mover") as stays:
        for _ in range(10):
            async with service.connect("mover") as tab:
                await assert_works(tab, redis, "mover")
                assert await stays.recv()


async def test_a_full_node_says_when_to_come_back(redis_server: RedisServer, redis: Redis) -> None:
    """A process at its limit answers 1013 with a delay, is not ready, and recovers."""
    settings = {"WEBSOCKET_MAX_CONNECTIONS": "1"}
    async with ServiceProcess(redis_server.url, settings=settings) as node:
        async with node.connect("first") as first:
            await node.wait_for_status("/readyz", 503)
            async with node.connect("second") as second:
                close = await closed(second)
            assert close.code == 1013
            assert close.reason["error_code"] == "CONNECTION_ERROR"
            assert close.reason["retry_after_ms"] > 0
            await assert_works(first, redis, "first")
        await node.wait_for_status("/readyz", 200)
        async with node.connect("second") as second:
            await assert_works(second, redis, "second")


async def test_without_a_secret_development_starts_but_admits_nobody(
    redis_server: RedisServer,
) -> None:
    """A missing secret is our fault, not the client's: 1013, not ready, and no word about it."""
    settings = {"JWT_SECRET_KEY": "", "ENVIRONMENT": "development"}
    async with ServiceProcess(redis_server.url, settings=settings, ready_status=503) as node:
        status, _, body = await node.http("/readyz")
        assert status == 503
        assert "JWT_SECRET_KEY" in json.loads(body)["checks"]["token_key"]
        async with node.connect() as client:
            close = await closed(client)
        assert close.code == 1013
        assert close.reason["error_code"] == "CONNECTION_ERROR"
        assert close.reason["retry_after_ms"] > 0
        async with node.connect(subprotocols=[V1]) as client:
            close = await closed(client)
        assert close.code == 1013
        assert "JWT" not in str(close)


async def output_of_start(redis_url: str, settings: Mapping[str, str]) -> str:
    """What a process that does not start in production has to say."""
    process = await asyncio.create_subprocess_exec(
        *HYPERCORN,
        f"127.0.0.1:{free_port()}",
        cwd=REPO,
        env={
            **os.environ,
            "REDIS_URL": redis_url,
            "ENVIRONMENT": "production",
            "JWT_SECRET_KEY": SECRET,
            "CORS_ORIGINS": json.dumps([ORIGIN]),
            **settings,
        },
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return output.decode()


async def test_production_does_not_start_with_settings_that_are_missing_or_unsafe(
    redis_server: RedisServer,
) -> None:
    """In production the process ends at once and names the variable, without a traceback."""
    wrong = [
        ("JWT_SECRET_KEY", ""),
        ("JWT_SECRET_KEY", "changeme"),
        ("CORS_ORIGINS", "[]"),
        ("CORS_ORIGINS", "https://app.example.org"),
        ("WEBSOCKET_IDLE_TIMEOUT", "soon"),
        ("WEBSOCKET_PING_INTERVAL", "600"),
    ]
    outputs = await asyncio.gather(
        *(output_of_start(redis_server.url, {variable: value}) for variable, value in wrong)
    )
    for (variable, value), output in zip(wrong, outputs, strict=True):
        assert variable in output
        assert "Traceback" not in output
        assert value != "changeme" or value not in output
