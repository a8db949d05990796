"""The key server is away, comes back, lies, or changes its keys."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import uuid4

import pytest

from huleedu_service_libs.redis_server import RedisServer
from huleedu_service_libs.testing.jwk_server import JwkServer
from huleedu_service_libs.testing.polling import until
from huleedu_service_libs.testing.signing_keys import SigningKey, key_set
from tests.functional.outcomes import WELCOME, outcome
from tests.functional.tokens import claims
from tests.service_process import ServiceProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")

ALGORITHM: Final = "ES256"
REFUSED: Final = "1008 invalid_signature"
KEY: Final = SigningKey.generate(ALGORITHM, "key-1")
OTHER: Final = SigningKey.generate(ALGORITHM, "key-2")
RSA: Final = SigningKey.generate("RS256", "key-1")


@asynccontextmanager
async def service_of(
    key_server: JwkServer, redis_server: RedisServer, *, ready_status: int = 200, **settings: str
) -> AsyncIterator[ServiceProcess]:
    """A service that asks this key server whenever a token names an unknown key."""
    async with ServiceProcess(
        redis_server.url,
        settings={
            "JWT_ALGORITHM": ALGORITHM,
            "JWT_JWKS_URL": key_server.url,
            "JWT_JWKS_COOLDOWN_SECONDS": "0.1",
            **settings,
        },
        ready_status=ready_status,
    ) as process:
        yield process


def good(key: SigningKey = KEY) -> str:
    return key.sign(claims())


async def asked_again(key_server: JwkServer, service: ServiceProcess) -> None:
    """Let tokens with an unknown key come until the service has asked for the keys."""
    before = key_server.requests

    async def asked() -> bool:
        token = OTHER.sign(claims(), headers={"kid": str(uuid4())})
        assert await outcome(service, token) == REFUSED
        return key_server.requests > before

    await until(asked)


async def test_key_server_away_at_the_start(redis_server: RedisServer) -> None:
    """Until it comes clients are to try later and `/readyz` says why; no restart is needed."""
    async with JwkServer(KEY) as key_server:
        await key_server.go_away()
        async with service_of(key_server, redis_server, ready_status=503) as service:
            status, _, body = await service.http("/readyz")
            problem = json.loads(body)["checks"]["token_key"]
            assert (status, "JWT_JWKS_URL" in problem) == (503, True)
            assert str(key_server.port) not in problem
            assert await outcome(service, good()) == "1013 CONNECTION_ERROR"
            # What is wrong with a token whatever the key is stays the client's fault.
            assert await outcome(service, "garbage") == "1008 invalid_token"
            assert (await service.http("/v1/tickets", **ticket_request(good())))[0] == 503
            await key_server.come_back()
            await service.wait_for_status("/readyz", 200)
            assert await outcome(service, good()) == WELCOME
            assert "Traceback" not in service.output()


def ticket_request(bearer: str) -> Mapping[str, Any]:
    headers = {"Authorization": f"Bearer {bearer}", "Content-Length": "0"}
    return {"method": "POST", "headers": headers}


@pytest.mark.parametrize("failure", ["away", "hung"])
async def test_key_server_away_later(redis_server: RedisServer, failure: str) -> None:
    """The keys that are there go on counting, however old, and new ones are seen on its return."""
    async with (
        JwkServer(KEY) as key_server,
        service_of(key_server, redis_server, JWT_JWKS_CACHE_SECONDS="1") as service,
    ):
        assert await outcome(service, good()) == WELCOME
        if failure == "away":
            await key_server.go_away()

            async def noticed() -> bool:
                return "older keys are used" in service.output()

            await until(noticed)
        else:
            key_server.hang()
            await key_server.asked(key_server.requests + 1)
        assert await outcome(service, good()) == WELCOME
        assert await outcome(service, good(OTHER)) == REFUSED
        assert (await service.http("/readyz"))[0] == 200
        if failure == "hung":
            await key_server.go_away()
        key_server.publish(KEY, OTHER)
        await key_server.come_back()

        async def known() -> bool:
            return await outcome(service, good(OTHER)) == WELCOME

        await until(known)
        assert await outcome(service, good()) == WELCOME


POISON: Final[Mapping[str, bytes]] = {
    "nothing": b"",
    "garbage": b"\x00\xff<html>",
    "cut off": key_set(OTHER)[:-10],
    "no set": b"[]",
    "null": b"null",
    "empty": b'{"keys": []}',
    "keys are no list": b'{"keys": {"kid": "key-2"}}',
    "a member given twice": key_set(OTHER)[:-1] + b', "keys": []}',
    "nested deeply": b"[" * 100_000,
    "too many": key_set(*[{**OTHER.public_jwk, "kid": str(n)} for n in range(1000)]),
    "another algorithm": key_set(RSA),
    "a secret": key_set({"kty": "oct", "kid": "key-2", "alg": "HS256", "k": "c2VjcmV0"}),
    "a secret for this algorithm": key_set(
        {"kty": "oct", "kid": "key-2", "alg": ALGORITHM, "k": "c2VjcmV0"}
    ),
    "with its private part": key_set({**OTHER.public_jwk, "d": OTHER.public_jwk["x"]}),
    "for encryption": key_set({**OTHER.public_jwk, "use": "enc"}),
    "a point off the curve": key_set({**OTHER.public_jwk, "y": OTHER.public_jwk["x"]}),
    "megabytes": key_set(OTHER) + b" " * 5_000_000,
}


@pytest.mark.parametrize("status", ["500 Internal Server Error", "302 Found", "404 Not Found"])
async def test_an_answer_that_is_none(redis_server: RedisServer, status: str) -> None:
    """Keys that come with an error, or from where a redirect leads, are not taken."""
    async with (
        JwkServer(OTHER) as elsewhere,
        JwkServer(KEY) as key_server,
        service_of(key_server, redis_server) as service,
    ):
        key_server.answer(key_set(OTHER), status=status, headers={"Location": elsewhere.url})
        await asked_again(key_server, service)
        assert await outcome(service, good(OTHER)) == REFUSED
        assert await outcome(service, good()) == WELCOME
        assert elsewhere.requests == 0


async def test_poisoned_key_sets(redis_server: RedisServer) -> None:
    """A set without a key that can be used changes nothing, and a good one afterwards counts."""
    async with JwkServer(KEY) as key_server, service_of(key_server, redis_server) as service:
        for poison in POISON.values():
            key_server.answer(poison)
            await asked_again(key_server, service)
            assert await outcome(service, good()) == WELCOME
            assert await outcome(service, good(OTHER)) == REFUSED
            assert (await service.http("/readyz"))[0] == 200
        key_server.publish({"kty": "oct", "kid": "key-2", "k": "c2VjcmV0"}, RSA, OTHER, KEY)
        await asked_again(key_server, service)
        assert await outcome(service, good(OTHER)) == WELCOME
        assert "Traceback" not in service.output()


async def test_keys_are_rotated(redis_server: RedisServer) -> None:
    """A new key counts with the first token that names it, a withdrawn one no more after that."""
    async with (
        JwkServer(KEY) as key_server,
        service_of(key_server, redis_server) as service,
        service.connect(bearer=good()) as before,
    ):
        key_server.publish(KEY, OTHER)

        async def known() -> bool:
            return await outcome(service, good(OTHER)) == WELCOME

        await until(known)
        assert await outcome(service, good()) == WELCOME
        key_server.publish(OTHER)
        await asked_again(key_server, service)
        assert await outcome(service, good()) == REFUSED
        assert await outcome(service, good(OTHER)) == WELCOME
        # Who is in stays until the token expires or is revoked.
        await (await before.ping())


async def test_another_key_under_a_known_id(redis_server: RedisServer) -> None:
    """What the key server publishes counts: a key takes the place of the one that had its id."""
    usurper = SigningKey.generate(ALGORITHM, KEY.key_id)
    async with JwkServer(KEY) as key_server, service_of(key_server, redis_server) as service:
        assert await outcome(service, good(usurper)) == REFUSED
        key_server.publish(usurper)
        await asked_again(key_server, service)
        assert await outcome(service, good(usurper)) == WELCOME
        assert await outcome(service, good()) == REFUSED
        key_server.publish(usurper, KEY)
        await asked_again(key_server, service)
        assert await outcome(service, good(usurper)) == WELCOME
        assert await outcome(service, good()) == WELCOME
