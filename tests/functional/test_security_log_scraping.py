"""A whole life of the service, and then a look for every secret at everything that it wrote."""

import asyncio
import base64
import contextlib
import json
import signal
import time
from collections.abc import AsyncIterator
from typing import Any, Final
from urllib.parse import quote
from uuid import uuid4

import pytest
from redis.asyncio import Redis
from websockets.exceptions import ConnectionClosed

from huleedu_service_libs.redis_server import RedisServer
from tests.functional.closes import closed
from tests.functional.collector import collector
from tests.functional.outcomes import V1
from tests.functional.raw_websocket import raw_websocket
from tests.functional.tokens import BAD_TOKENS, WAYS, by_subprotocol_in_v1
from tests.service_process import SECRET, SERVE, ServiceProcess, token

pytestmark = pytest.mark.asyncio(loop_scope="module")

PREVIOUS_SECRET: Final = "the-secret-before-it-of-the-tests-with-more-than-32-bytes"
API_KEY: Final = "the-key-of-the-internal-api-of-the-tests-with-32-bytes"
REDIS_PASSWORD: Final = "the-password-of-redis-in-the-tests"
MIN_PART_LENGTH: Final = 12


class Life:
    """What was shown to a service, and what it has let out."""

    def __init__(self, service: ServiceProcess) -> None:
        self.service = service
        self.secrets: set[str] = {SECRET, PREVIOUS_SECRET, API_KEY, REDIS_PASSWORD}
        self.seen: list[str] = []

    def token(self, user: str = "teacher-1", **claims: Any) -> str:
        """A good one that nobody has used yet."""
        bearer = token(user, jti=str(uuid4()), **claims)
        self.secrets.add(bearer)
        return bearer

    async def http(
        self, path: str, *, body: bytes = b"", method: str = "GET", **headers: str
    ) -> tuple[int, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.service.port)
        fields = {
            "Host": "localhost",
            "Connection": "close",
            "Content-Length": str(len(body)),
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        lines = [f"{method} {path} HTTP/1.1", *(f"{n}: {value}" for n, value in fields.items())]
        try:
            writer.write("\r\n".join([*lines, "", ""]).encode() + body)
            received = await reader.read()
        finally:
            writer.close()
        return int(received.split()[1]), received

    async def show(self, path: str, **options: Any) -> bytes:
        """Ask, and keep what comes."""
        _, received = await self.http(path, **options)
        self.seen.append(received.decode())
        return received

    async def ticket(self) -> str:
        authorization = f"Bearer {self.token()}"
        _, received = await self.http("/v1/tickets", method="POST", Authorization=authorization)
        issued = str(json.loads(received.partition(b"\r\n\r\n")[2])["ticket"])
        self.secrets.add(issued)
        return issued

    async def refused(self, way: str, bad: str) -> None:
        """A handshake with a token that is no good."""
        self.secrets.add(bad)
        ways = {**WAYS, "v1": by_subprotocol_in_v1}
        async with ways[way](self.service, bad) as client:
            close = await closed(client)
        self.seen += [json.dumps(close.reason), *map(str, close.messages)]

    async def by_raw(self, target: str, *headers: tuple[str, str]) -> None:
        async with raw_websocket(self.service.port, target=target, headers=headers) as client:
            if client.status == 101:
                try:
                    self.seen.append((await client.receive_close())[1])
                except (EOFError, ConnectionError):
                    return
            else:
                self.seen.append((await client.body()).decode())


async def lived(life: Life) -> None:
    """Each way in and out, the good and the bad."""
    service = life.service
    for way, connect in {**WAYS, "v1": by_subprotocol_in_v1}.items():
        async with connect(service, life.token(f"user by {way}")) as client:
            await (await client.ping())
    for number, (wrong, (bad, _)) in enumerate(sorted(BAD_TOKENS.items())):
        if "8 kB" not in wrong:
            await life.refused([*WAYS, "v1"][number % 4], bad)

    one = await life.ticket()
    async with service.connect(bearer=life.token()) as _:
        for _ in range(2):  # the second time it is used up
            await life.show(f"/ws?ticket={one}")
    two = await life.ticket()
    await life.by_raw(f"/ws?ticket={two}&token={life.token()}")
    await life.by_raw(f"/ws?ticket={two}x")
    await life.show(f"/v1/tickets?ticket={two}", method="POST")

    async with service.connect(bearer=life.token(), subprotocols=[V1]) as client:
        await client.recv()
        for bearer in (life.token(), life.token(exp=time.time() + 3600.5)):
            await client.send(json.dumps({"type": "authenticate", "token": bearer}))
            life.seen.append(str(await client.recv()))
        await client.send(json.dumps({"type": "authenticate", "tokens": life.token()}))
        await client.send(life.token())
        life.seen += [str(await client.recv()) for _ in range(2)]
        await client.send(json.dumps({"type": "authenticate", "token": life.token("another")}))
        close = await closed(client)
        life.seen += [json.dumps(close.reason), *map(str, close.messages)]
    async with service.connect(bearer=life.token(), subprotocols=[V1]) as client:
        await client.recv()
        forged = life.token()[:-6] + "AAAAAA"
        life.secrets.add(forged)
        await client.send(json.dumps({"type": "authenticate", "token": forged}))
        life.seen += map(str, (await closed(client)).messages)

    for path in ("/ws", "/nowhere", "/healthz", "/internal/v1/presence", f"/{life.token()}"):
        bearer = life.token()
        await life.show(f"{path}?token={bearer}", Authorization=f"Bearer {bearer}")
        await life.show(
            f"{path}?x=1&access_token={bearer}",
            Referer=f"https://app.example.org/?ticket={two}#token={bearer}",
            Cookie=f"session={bearer}",
            Sec_WebSocket_Protocol=f"{V1}, bearer.{bearer}",
            X_Correlation_ID=bearer,
        )
    for key in (API_KEY, f"{API_KEY}-not", API_KEY[:-1]):
        life.secrets.add(key)
        caller = {"X_Internal_API_Key": key, "X_Service_ID": "result_service"}
        await life.show("/internal/v1/presence?limit=10", **caller)
        await life.show("/internal/v1/presence?user_id=teacher-1", **caller)
        await life.show(f"/internal/v1/presence?token={life.token()}", **caller)
        notifications = [{"user_id": "teacher-1", "event_type": "e", "data": {"n": 1}}]
        for path, body in (
            ("notifications", {"notifications": notifications}),
            ("revocations", {"token_id": str(uuid4())}),
            ("revocations", {"token_id": life.token()}),
            ("disconnections", {"user_id": "teacher-1"}),
            ("disconnections", {"token": life.token()}),
        ):
            await life.show(
                f"/internal/v1/{path}",
                method="POST",
                body=json.dumps(body).encode(),
                Content_Type="application/json",
                **caller,
            )
    for path in ("/metrics", "/readyz", "/healthz", "/healthz/redis", "/healthz/websocket"):
        await life.show(path)


async def of_redis(redis: Redis) -> AsyncIterator[str]:
    """Every key with its value, in whatever spelling."""
    async for key in redis.scan_iter():
        yield repr(key)
        kind = await redis.type(key)
        match kind:
            case b"string":
                yield repr(await redis.get(key))
            case b"zset":
                yield repr(await redis.zrange(key, 0, -1, withscores=True))
            case b"hash":
                yield repr(await redis.hgetall(key))
            case b"stream":
                yield repr(await redis.xrange(key))
            case b"list":
                yield repr(await redis.lrange(key, 0, -1))
            case b"set":
                yield repr(await redis.smembers(key))
            case _:
                raise AssertionError(kind)


def spellings(secret: str) -> set[str]:
    """The whole, and each part of a token that says more than its algorithm."""
    parts = {secret, *(secret.split(".")[1:] if "." in secret else ())}
    telling = {part for part in parts if len(part) >= MIN_PART_LENGTH}
    encoded = {base64.b64encode(part.encode()).decode().rstrip("=") for part in telling}
    return telling | {quote(part, safe="") for part in telling} | encoded


async def test_no_secret_is_written_anywhere() -> None:
    """Logs, spans, metrics, answers and Redis: none has a token, a ticket, a key or a password."""
    options = {"requirepass": REDIS_PASSWORD}
    async with RedisServer(options=options) as server, collector() as spans:
        settings = {
            # As in production, nothing is said outside the log.
            "ENVIRONMENT": "production",
            "CORS_ORIGINS": '["https://app.example.org"]',
            "LOG_FORMAT": "json",
            "PYTHONASYNCIODEBUG": "1",
            "JWT_SECRET_KEY_PREVIOUS": PREVIOUS_SECRET,
            "INTERNAL_API_KEY": API_KEY,
            "WEBSOCKET_MAX_CONNECTIONS_PER_USER": "50",
            "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST": ".*",
            "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_RESPONSE": ".*",
            **spans.settings,
        }
        url = f"redis://:{REDIS_PASSWORD}@127.0.0.1:{server.port}"
        command = [*SERVE, "--workers", "2"]
        async with (
            ServiceProcess(url, settings=settings, command=command) as service,
            Redis(port=server.port, password=REDIS_PASSWORD) as redis,
        ):
            life = Life(service)
            await lived(life)
            unused = await life.ticket()
            async with service.connect(bearer=life.token(), subprotocols=[V1]) as drained:
                await drained.recv()
                kept = [text async for text in of_redis(redis)]
                service.signal(signal.SIGTERM)
                with contextlib.suppress(ConnectionClosed):
                    while True:
                        life.seen.append(str(await drained.recv()))
                assert await service.wait() == 0
            assert drained.close_code == 1012
            life.seen.append(str(drained.close_reason))
            output = service.output()
            everything = "\n".join([output, spans.text(), *life.seen, *kept])
    assert unused in life.secrets
    for sign in (
        '"online"',
        "handshake refused",
        "connection closed",
        "websocket.validate_token",
        "ws:",
    ):
        assert sign in everything
    assert "websocket_connections_opened_total" in everything
    assert any("ticket" in key for key in kept)
    assert any("connections:" in key for key in kept)
    for line in output.splitlines():
        json.loads(line)
    for secret in life.secrets:
        for spelling in spellings(secret):
            assert spelling not in everything, spelling
