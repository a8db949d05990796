"""A shared secret that is being replaced, and clocks that differ."""

import json
import time
from typing import Any

import pytest
import websockets

from huleedu_service_libs.redis_server import RedisServer
from tests.functional.closes import closed
from tests.functional.outcomes import WELCOME, outcome
from tests.functional.tokens import claims, signed
from tests.service_process import SECRET, ServiceProcess, token

pytestmark = pytest.mark.asyncio(loop_scope="module")

NEXT_SECRET = "the-next-secret-of-the-tests-with-more-than-32-bytes"
REFUSED = "1008 invalid_signature"


async def test_a_secret_is_replaced_step_by_step(redis_server: RedisServer) -> None:
    """While both secrets are configured both count; then the old one opens nothing any more."""
    old, new = token(), signed(claims(), secret=NEXT_SECRET)
    neither = signed(claims(), secret=f"{NEXT_SECRET}{SECRET}")
    steps = [
        ({"JWT_SECRET_KEY": SECRET}, WELCOME, REFUSED),
        # The identity service changes when all processes know both, in whichever order.
        ({"JWT_SECRET_KEY": SECRET, "JWT_SECRET_KEY_PREVIOUS": NEXT_SECRET}, WELCOME, WELCOME),
        ({"JWT_SECRET_KEY": NEXT_SECRET, "JWT_SECRET_KEY_PREVIOUS": SECRET}, WELCOME, WELCOME),
        ({"JWT_SECRET_KEY": NEXT_SECRET, "JWT_SECRET_KEY_PREVIOUS": ""}, REFUSED, WELCOME),
    ]
    for settings, of_old, of_new in steps:
        async with ServiceProcess(redis_server.url, settings=settings) as service:
            assert await outcome(service, old) == of_old
            assert await outcome(service, new) == of_new
            assert await outcome(service, neither) == REFUSED
            assert await outcome(service, signed(claims(), secret="")) == REFUSED


async def test_a_previous_secret_alone_is_none(redis_server: RedisServer) -> None:
    """Without a current secret nobody is let in, and that is not the client's fault."""
    settings = {"JWT_SECRET_KEY": "", "JWT_SECRET_KEY_PREVIOUS": SECRET}
    async with ServiceProcess(redis_server.url, settings=settings, ready_status=503) as service:
        assert await outcome(service, token()) == "1013 CONNECTION_ERROR"


async def test_clocks_that_differ(redis_server: RedisServer) -> None:
    """Within the leeway a token counts before its time and after it, and no longer."""
    settings = {"JWT_LEEWAY_SECONDS": "60"}
    async with (
        ServiceProcess(redis_server.url, settings=settings) as lenient,
        ServiceProcess(redis_server.url) as strict,
    ):
        now = int(time.time())
        cases: list[tuple[dict[str, Any], str, str]] = [
            ({"exp": now - 10}, WELCOME, "1008 token_expired"),
            ({"nbf": now + 30}, WELCOME, "1008 invalid_token"),
            ({"iat": now + 30}, WELCOME, "1008 invalid_token"),
            ({"exp": now - 90}, "1008 token_expired", "1008 token_expired"),
            ({"nbf": now + 300}, "1008 invalid_token", "1008 invalid_token"),
        ]
        for changes, here, there in cases:
            assert await outcome(lenient, token(**changes)) == here
            assert await outcome(strict, token(**changes)) == there
        # What opens a connection keeps it open, and is good for a ticket.
        headers = {"Authorization": f"Bearer {token(exp=now - 10)}", "Content-Length": "0"}
        status, _, body = await lenient.http("/v1/tickets", method="POST", headers=headers)
        issued = json.loads(body)
        assert (status, issued["expires_in_ms"] > 0) == (201, True)
        async with websockets.connect(f"{lenient.url}?ticket={issued['ticket']}", proxy=None) as by:
            await (await by.ping())
        async with lenient.connect(bearer=token(exp=now - 10)) as plain:
            await (await plain.ping())
        async with lenient.connect(bearer=token(exp=time.time() - 59.5)) as plain:
            close = await closed(plain)
        assert (close.code, close.reason["message"]) == (1008, "Token has expired")
