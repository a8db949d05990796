"""Asymmetric tokens at the door: who has the private key gets in, and no trick does."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from huleedu_service_libs.redis_server import RedisServer
from huleedu_service_libs.testing.jwk_server import JwkServer
from huleedu_service_libs.testing.jwt_helpers import create_jwt
from huleedu_service_libs.testing.signing_keys import SigningKey
from tests.functional.outcomes import WELCOME, outcome
from tests.functional.tokens import claims
from tests.service_process import ServiceProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY_ID: Final = "key-1"
ALGORITHMS: Final = ("RS256", "PS256", "ES256", "EdDSA")
SOURCES: Final = ("JWT_PUBLIC_KEY", "JWT_PUBLIC_KEY_PATH", "JWT_JWKS_URL")
OF_THE_SAME_KEY: Final = {"RS256": "PS256", "PS256": "RS256"}
KEY_IDS_THAT_REACH_FOR_MORE: Final = (
    "",
    "../../../../dev/null",
    "/dev/null",
    "file:///dev/null",
    "http://127.0.0.1/keys.json",
    "key-1' OR '1'='1",
    "key-1\x00",
    "key-1\r\nX-Header: x",
    "KEY-1",
    "$(id)",
    "{{7*7}}",
    "*",
    "\u043aey-1",
    "k" * 256,
)
KEY_IDS_THAT_ARE_NONE: Final[Sequence[Any]] = (
    None,
    1,
    True,
    ["key-1"],
    {"kid": "key-1"},
    "k" * 257,
)


@asynccontextmanager
async def service_with(
    redis_server: RedisServer, source: str, key: SigningKey, folder: Path
) -> AsyncIterator[ServiceProcess]:
    """A service that has the public half from there, and a secret that does not count."""
    async with JwkServer(key) as key_server:
        path = folder / "key.pem"
        path.write_text(key.public_pem)
        value = {
            "JWT_PUBLIC_KEY": key.public_pem.replace("\n", "\\n"),
            "JWT_PUBLIC_KEY_PATH": str(path),
            "JWT_JWKS_URL": key_server.url,
        }[source]
        settings = {"JWT_ALGORITHM": key.algorithm, source: value}
        async with ServiceProcess(redis_server.url, settings=settings) as process:
            yield process


def forgeries(key: SigningKey) -> Mapping[str, tuple[str, str]]:
    """Tokens by those who have the public half at most, and why each is refused."""
    good, algorithm = claims(), key.algorithm
    public = key.public_pem
    own = SigningKey.generate(algorithm, KEY_ID)
    other_family = SigningKey.generate("EdDSA" if algorithm == "ES256" else "ES256", KEY_ID)
    named = {"kid": KEY_ID}
    described = {
        "jwk": own.public_jwk,
        "jku": "http://127.0.0.1/keys.json",
        "x5u": "http://127.0.0.1/certificate.pem",
        "x5c": [own.public_pem],
    }

    def hmac(secret: str, *, says: str) -> str:
        return create_jwt(secret, good, "HS256", headers={**named, "alg": says})

    return {
        "public key as a secret": (hmac(public, says="HS256"), "invalid_algorithm"),
        "public key as a secret, stripped": (
            hmac(public.strip(), says="HS256"),
            "invalid_algorithm",
        ),
        "public key as a secret, disguised": (hmac(public, says=algorithm), "invalid_signature"),
        "empty secret, disguised": (hmac("", says=algorithm), "invalid_signature"),
        "no signature": (create_jwt("", good, "none", headers=named), "invalid_algorithm"),
        "no signature, disguised": (
            create_jwt("", good, "none", headers={**named, "alg": algorithm}),
            "invalid_signature",
        ),
        "says NONE": (key.sign(good, headers={"alg": "NONE"}), "invalid_algorithm"),
        "says it in another case": (
            key.sign(good, headers={"alg": algorithm.swapcase()}),
            "invalid_algorithm",
        ),
        "says another algorithm": (key.sign(good, headers={"alg": "HS256"}), "invalid_algorithm"),
        "says several": (key.sign(good, headers={"alg": [algorithm]}), "invalid_algorithm"),
        "says nothing": (key.sign(good, headers={"alg": None}), "invalid_algorithm"),
        "another family": (other_family.sign(good), "invalid_algorithm"),
        "another family, disguised": (
            other_family.sign(good, headers={"alg": algorithm}),
            "invalid_signature",
        ),
        "somebody's own key": (own.sign(good), "invalid_signature"),
        "a key that comes along": (own.sign(good, headers=described), "invalid_signature"),
        "claims of another token": (
            ".".join([*key.sign(claims(sub="x")).split(".")[:2], key.sign(good).split(".")[2]]),
            "invalid_signature",
        ),
    }


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_only_the_private_key_opens(
    redis_server: RedisServer, tmp_path: Path, algorithm: str, source: str
) -> None:
    """Whatever the algorithm and wherever the key is from, no confusion of them opens."""
    key = SigningKey.generate(algorithm, KEY_ID)
    async with service_with(redis_server, source, key, tmp_path) as service:
        assert await outcome(service, key.sign(claims())) == WELCOME
        for trick, (token, reason) in forgeries(key).items():
            assert await outcome(service, token) == f"1008 {reason}", trick
        if sibling := OF_THE_SAME_KEY.get(algorithm):
            for says, reason in ((sibling, "invalid_algorithm"), (algorithm, "invalid_signature")):
                token = create_jwt(
                    key.private_pem, claims(), sibling, headers={"alg": says, "kid": KEY_ID}
                )
                assert await outcome(service, token) == f"1008 {reason}"
        assert await outcome(service, key.sign(claims())) == WELCOME
        assert "Traceback" not in service.output()


@pytest.mark.parametrize("source", SOURCES)
async def test_a_key_id_is_a_name_and_nothing_else(
    redis_server: RedisServer, tmp_path: Path, source: str
) -> None:
    """Paths, addresses and queries in `kid` lead nowhere: they name a key or they do not."""
    key = SigningKey.generate("ES256", KEY_ID)
    stranger = SigningKey.generate("ES256", KEY_ID)
    # A single key that was configured is meant whatever a token calls it.
    elsewhere = "1008 invalid_signature" if source == "JWT_JWKS_URL" else WELCOME
    async with service_with(redis_server, source, key, tmp_path) as service:
        for key_id in KEY_IDS_THAT_REACH_FOR_MORE:
            headers = {"kid": key_id}
            assert await outcome(service, key.sign(claims(), headers=headers)) == elsewhere
            refused = await outcome(service, stranger.sign(claims(), headers=headers))
            assert refused == "1008 invalid_signature"
        for none in KEY_IDS_THAT_ARE_NONE:
            token = key.sign(claims(), headers={"kid": none})
            assert await outcome(service, token) == "1008 invalid_token"
        assert "Traceback" not in service.output()


async def test_a_flood_of_unknown_key_ids(redis_server: RedisServer) -> None:
    """Any number of tokens with invented key ids cost the key server one request."""
    key = SigningKey.generate("ES256", KEY_ID)
    stranger = SigningKey.generate("ES256")
    async with JwkServer(key) as key_server:
        settings = {
            "JWT_ALGORITHM": "ES256",
            "JWT_JWKS_URL": key_server.url,
            "JWT_JWKS_COOLDOWN_SECONDS": "3600",
        }
        async with ServiceProcess(redis_server.url, settings=settings) as service:
            outcomes = await asyncio.gather(
                *(
                    outcome(service, stranger.sign(claims(), headers={"kid": f"key-{n}"}))
                    for n in range(2, 200)
                ),
                *(outcome(service, key.sign(claims(sub=f"teacher-{n}"))) for n in range(10)),
            )
        assert set(outcomes[:198]) == {"1008 invalid_signature"}
        assert set(outcomes[198:]) == {WELCOME}
        assert key_server.requests == 2
