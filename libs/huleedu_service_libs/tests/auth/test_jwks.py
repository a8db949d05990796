"""Keys that are fetched, from a key server that rotates them, hangs, lies and goes away."""

from __future__ import annotations

import asyncio
import gzip
import logging
import ssl
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from huleedu_service_libs.auth import JWTValidationSettings, TokenVerifier
from huleedu_service_libs.auth.key_set_fetcher import MAX_KEY_SET_BYTES
from huleedu_service_libs.testing.jwk_server import JwkServer
from huleedu_service_libs.testing.polling import until
from huleedu_service_libs.testing.signing_keys import SigningKey, key_set
from libs.huleedu_service_libs.tests.auth.token_claims import (
    ACCEPTED,
    BAD_SIGNATURE,
    BAD_TOKEN,
    GARBAGE,
    good_claims,
    outcome,
)

if TYPE_CHECKING:
    from pathlib import Path

KEY = SigningKey.generate("ES256", "key-1")
NEXT_KEY = SigningKey.generate("ES256", "key-2")
STRANGER = SigningKey.generate("ES256", "key-3")
NO_KEYS_YET = "CONNECTION_ERROR"


def verifier_of(url: str, **changes: Any) -> TokenVerifier:
    values: dict[str, Any] = {
        "JWT_ALGORITHM": "ES256",
        "JWT_JWKS_URL": url,
        # Longer than a test: what happens earlier has another cause.
        "JWT_JWKS_COOLDOWN_SECONDS": 3600,
        **changes,
    }
    return TokenVerifier(JWTValidationSettings(**values), service="door")


def token_of(key: SigningKey, **headers: Any) -> str:
    return key.sign(good_claims(), headers=headers)


async def _until(verifier: TokenVerifier, key: SigningKey, wanted: str) -> None:
    async def is_so() -> bool:
        return await outcome(verifier, token_of(key)) == wanted

    await until(is_so)


async def test_published_keys_verify_tokens() -> None:
    """A token signed with a published key is accepted, one signed with another key is not."""
    async with JwkServer(KEY, NEXT_KEY) as server, verifier_of(server.url) as verifier:
        assert await outcome(verifier, token_of(KEY)) == ACCEPTED
        assert await outcome(verifier, token_of(NEXT_KEY)) == ACCEPTED
        assert await outcome(verifier, token_of(NEXT_KEY, kid="key-1")) == BAD_SIGNATURE
        assert await outcome(verifier, GARBAGE) == BAD_TOKEN
        assert verifier.problem is None
        statistics = verifier.statistics()
        assert (statistics.keys, statistics.fetches_succeeded) == (2, 1)
        assert statistics.age_s is not None
        assert server.requests == 1


async def test_a_storm_of_tokens_causes_one_fetch() -> None:
    """However many come before the keys do, they wait for the same request."""
    async with JwkServer(KEY) as server, verifier_of(server.url) as verifier:
        outcomes = await asyncio.gather(*(outcome(verifier, token_of(KEY)) for _ in range(200)))
        assert set(outcomes) == {ACCEPTED}
        assert server.requests == 1


async def test_a_new_key_is_fetched_when_a_token_names_it() -> None:
    """After a rotation the first tokens of the new key are accepted, and cause one fetch."""
    async with JwkServer(KEY) as server, verifier_of(server.url) as verifier:
        assert await outcome(verifier, token_of(KEY)) == ACCEPTED
        server.publish(KEY, NEXT_KEY)
        outcomes = await asyncio.gather(*(outcome(verifier, token_of(NEXT_KEY)) for _ in range(50)))
        assert set(outcomes) == {ACCEPTED}
        assert server.requests == 2


async def test_unknown_key_ids_cause_a_bounded_number_of_fetches() -> None:
    """Thousands of made-up key ids cause one fetch in the cooldown; good tokens pass meanwhile."""
    async with JwkServer(KEY) as server, verifier_of(server.url) as verifier:
        assert await outcome(verifier, token_of(KEY)) == ACCEPTED
        for number in range(2_000):
            made_up = token_of(STRANGER, kid=f"made-up-{number}")
            assert await outcome(verifier, made_up) == BAD_SIGNATURE
        assert await outcome(verifier, token_of(KEY)) == ACCEPTED
        assert server.requests == 2


async def test_unknown_key_ids_are_asked_for_again_after_the_cooldown() -> None:
    """A key that was not there yet is found later."""
    async with (
        JwkServer(KEY) as server,
        verifier_of(server.url, JWT_JWKS_COOLDOWN_SECONDS=0.1) as verifier,
    ):
        assert await outcome(verifier, token_of(NEXT_KEY)) == BAD_SIGNATURE
        server.publish(KEY, NEXT_KEY)
        await _until(verifier, NEXT_KEY, ACCEPTED)


async def test_a_withdrawn_key_verifies_nothing() -> None:
    """A key that is gone from the set counts no more once the set was fetched again."""
    async with (
        JwkServer(KEY, NEXT_KEY) as server,
        verifier_of(server.url, JWT_JWKS_CACHE_SECONDS=1) as verifier,
    ):
        assert await outcome(verifier, token_of(KEY)) == ACCEPTED
        server.publish(NEXT_KEY)
        await _until(verifier, KEY, BAD_SIGNATURE)
        assert await outcome(verifier, token_of(NEXT_KEY)) == ACCEPTED


async def test_keys_are_refreshed_before_they_are_too_old() -> None:
    """The set is fetched again in the background; nobody has to ask for it."""
    async with (
        JwkServer(KEY) as server,
        verifier_of(server.url, JWT_JWKS_CACHE_SECONDS=1) as verifier,
    ):
        async with asyncio.timeout(20):
            await server.asked(3)
        age_s = verifier.statistics().age_s
        assert age_s is not None
        assert await outcome(verifier, token_of(KEY)) == ACCEPTED


async def test_a_key_server_that_is_away_at_the_start_is_our_fault() -> None:
    """Until keys have come nobody is blamed for it, and once they have all is well by itself."""
    async with JwkServer(KEY) as server:
        await server.go_away()
        async with verifier_of(server.url) as verifier:
            assert await outcome(verifier, token_of(KEY)) == NO_KEYS_YET
            assert await outcome(verifier, GARBAGE) == BAD_TOKEN
            problem = verifier.problem or ""
            assert problem.startswith("no key set has come from JWT_JWKS_URL")
            assert str(server.port) not in problem
            assert verifier.statistics().keys == 0
            assert verifier.statistics().age_s is None

            await server.come_back()
            await _until(verifier, KEY, ACCEPTED)
            assert verifier.problem is None
            assert verifier.statistics().fetches_failed > 0


async def test_a_key_server_that_hangs_at_the_start_holds_nobody_for_long() -> None:
    """Tokens wait two seconds for the first keys, all of them at the same time."""
    async with JwkServer(KEY) as server:
        server.hang()
        async with verifier_of(server.url) as verifier, asyncio.timeout(20):
            outcomes = await asyncio.gather(*(outcome(verifier, token_of(KEY)) for _ in range(20)))
            assert set(outcomes) == {NO_KEYS_YET}
            server.publish(KEY)
            await _until(verifier, KEY, ACCEPTED)


GARBLED: list[dict[str, Any]] = [
    {"body": b"<html>It works!</html>"},
    {"body": b'{"keys": []}'},
    {"body": key_set({**KEY.public_jwk, "use": "enc"})},
    {"body": key_set(STRANGER), "status": "500 Internal Server Error"},
    {"body": key_set(STRANGER), "status": "204 No Content"},
    {"body": key_set(STRANGER) + b" " * MAX_KEY_SET_BYTES},
    {"body": gzip.compress(key_set(STRANGER)), "headers": {"Content-Encoding": "gzip"}},
    {"body": key_set(STRANGER), "headers": {"Content-Length": "9999"}},
    {"body": key_set(STRANGER), "headers": {"X\nY": "not HTTP"}},
]


@pytest.mark.parametrize("answer", GARBLED)
async def test_good_keys_outlive_whatever_the_server_answers(answer: dict[str, Any]) -> None:
    """Garbage, an empty set, an error or too much of it replaces no key, and brings in none."""
    async with (
        JwkServer(KEY) as server,
        verifier_of(server.url, JWT_JWKS_CACHE_SECONDS=1) as verifier,
    ):
        assert await outcome(verifier, token_of(KEY)) == ACCEPTED
        server.answer(**answer)
        async with asyncio.timeout(20):
            await server.asked(3)
        assert verifier.statistics().fetches_failed > 0
        assert await outcome(verifier, token_of(KEY)) == ACCEPTED
        assert await outcome(verifier, token_of(STRANGER)) == BAD_SIGNATURE
        assert verifier.problem is None

        server.publish(NEXT_KEY)
        await _until(verifier, NEXT_KEY, ACCEPTED)
        assert await outcome(verifier, token_of(KEY)) == BAD_SIGNATURE


async def test_redirects_are_not_followed() -> None:
    """Keys come from the configured address and from nowhere else."""
    async with JwkServer(STRANGER) as elsewhere, JwkServer() as server:
        server.answer(b"", status="302 Found", headers={"Location": elsewhere.url})
        async with verifier_of(server.url) as verifier:
            assert await outcome(verifier, token_of(STRANGER)) == NO_KEYS_YET
            assert "status 302" in (verifier.problem or "")
        assert elsewhere.requests == 0


@pytest.mark.parametrize("outage", ["away", "hangs"])
async def test_old_keys_are_used_while_the_server_is_gone(outage: str) -> None:
    """In an outage known keys verify at once, and an unknown one is refused after a short wait."""
    async with (
        JwkServer(KEY) as server,
        verifier_of(server.url, JWT_JWKS_CACHE_SECONDS=1) as verifier,
    ):
        assert await outcome(verifier, token_of(KEY)) == ACCEPTED
        if outage == "away":
            await server.go_away()
        else:
            server.hang()
        async with asyncio.timeout(20):
            assert await outcome(verifier, token_of(NEXT_KEY)) == BAD_SIGNATURE
        assert await outcome(verifier, token_of(KEY)) == ACCEPTED
        assert verifier.problem is None

        server.publish(KEY, NEXT_KEY)
        await server.come_back()
        await _until(verifier, NEXT_KEY, ACCEPTED)


async def test_a_token_that_names_no_key_means_the_only_one() -> None:
    """A token without key id is accepted while there is one key, and causes no fetch otherwise."""
    nameless = SigningKey("ES256", None, KEY.private_pem, KEY.public_pem, KEY.public_jwk)
    async with JwkServer(KEY) as server, verifier_of(server.url) as verifier:
        assert await outcome(verifier, token_of(nameless)) == ACCEPTED
    async with JwkServer(KEY, NEXT_KEY) as server, verifier_of(server.url) as verifier:
        assert await outcome(verifier, token_of(nameless)) == BAD_SIGNATURE
        assert server.requests == 1


async def test_a_refused_token_is_accepted_once_its_key_is_published() -> None:
    """What one set of keys has refused, the next one may verify."""
    async with (
        JwkServer(NEXT_KEY) as server,
        verifier_of(server.url, JWT_JWKS_CACHE_SECONDS=1) as verifier,
    ):
        token = token_of(KEY, kid="key-2")
        assert await outcome(verifier, token) == BAD_SIGNATURE
        assert await outcome(verifier, token) == BAD_SIGNATURE
        server.publish({**KEY.public_jwk, "kid": "key-2"})

        async def is_accepted() -> bool:
            return await outcome(verifier, token) == ACCEPTED

        await until(is_accepted)


async def test_credentials_of_the_key_server_are_told_to_nobody_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A password in the URL reaches the key server, and no log, error or health check."""
    caplog.set_level(logging.DEBUG)
    async with JwkServer(KEY) as server:
        url = server.url.replace("://", "://reader:hunter22@")
        async with verifier_of(url) as verifier:
            assert await outcome(verifier, token_of(KEY)) == ACCEPTED
            assert b"Authorization: Basic cmVhZGVyOmh1bnRlcjIy" in server.last_request
        await server.go_away()
        async with verifier_of(url) as verifier:
            assert await outcome(verifier, token_of(KEY)) == NO_KEYS_YET
            assert "hunter22" not in (verifier.problem or "")
    assert "hunter22" not in caplog.text
    assert "key set not fetched" in caplog.text


def _certificate(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate for 127.0.0.1 that only those trust who have the file, and its server side."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(private, hashes.SHA256())
    )
    path, key_path = folder / "certificate.pem", folder / "private.pem"
    path.write_bytes(certificate.public_bytes(Encoding.PEM))
    key_path.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(path, key_path)
    return path, context


async def test_only_a_trusted_key_server_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over https the server has to prove who it is before its keys count."""
    certificate, context = _certificate(tmp_path)
    async with JwkServer(KEY, tls=context) as server:
        async with verifier_of(server.url) as verifier:
            assert await outcome(verifier, token_of(KEY)) == NO_KEYS_YET
        assert server.requests == 0
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        async with verifier_of(server.url) as verifier:
            assert await outcome(verifier, token_of(KEY)) == ACCEPTED


@pytest.mark.parametrize(
    ("variables", "url"),
    [
        ({"SSL_CERT_FILE": "/nonexistent.pem"}, "https://127.0.0.1:1/"),
        ({}, "https://\u2024\u2024/"),
    ],
)
async def test_a_key_server_that_cannot_even_be_asked_is_our_fault(
    variables: dict[str, str], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service starts, and says that it will never have keys like this."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    async with verifier_of(url) as verifier:
        assert await outcome(verifier, token_of(KEY)) == "CONFIGURATION_ERROR"
        assert (verifier.problem or "").startswith("JWT_JWKS_URL cannot be asked")


async def test_a_verifier_that_was_not_entered_says_so() -> None:
    """Nobody waits for keys that nobody fetches."""
    with pytest.raises(RuntimeError, match="enter the context manager"):
        await verifier_of("http://127.0.0.1:1/").verify(token_of(KEY))


async def test_a_server_that_stalls_is_given_up() -> None:
    """An answer that never ends does not keep the next attempt from being made."""
    async with JwkServer() as server:
        server.stall()
        async with verifier_of(server.url) as verifier, asyncio.timeout(20):
            assert await outcome(verifier, token_of(KEY)) == NO_KEYS_YET
            server.publish(KEY)
            await _until(verifier, KEY, ACCEPTED)


async def test_leaving_ends_a_fetch_that_hangs() -> None:
    """A service that stops does not wait for the key server."""
    async with JwkServer() as server:
        server.hang()
        async with asyncio.timeout(20), verifier_of(server.url):
            await server.asked(1)


WITHOUT_HTTPX = """
import asyncio, sys
sys.modules["httpx"] = None
from huleedu_service_libs.auth import JWTValidationSettings, TokenVerifier
from huleedu_service_libs.error_handling import HuleEduError

async def main():
    settings = JWTValidationSettings(JWT_ALGORITHM="ES256", JWT_JWKS_URL="http://127.0.0.1:1/")
    async with TokenVerifier(settings, service="door") as verifier:
        try:
            await verifier.verify("a.b.c")
        except HuleEduError as error:
            print(error.error_code, "|", verifier.problem)

asyncio.run(main())
"""


def test_a_missing_package_is_named() -> None:
    """Without the extra that fetches keys, the service says which one to install."""
    told = subprocess.run(
        [sys.executable, "-c", WITHOUT_HTTPX], capture_output=True, text=True, check=True
    )
    assert told.stdout.startswith("CONFIGURATION_ERROR | JWT_JWKS_URL needs the package httpx")
    assert "huleedu-service-libs[jwks]" in told.stdout
