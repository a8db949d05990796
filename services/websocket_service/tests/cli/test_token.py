from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from huleedu_service_libs.auth import JWTClaims, JWTValidationSettings, decode_jwt

if TYPE_CHECKING:
    from services.websocket_service.tests.cli.conftest import Dev
    from services.websocket_service.tests.cli.console import Console

SECRET = "k" * 40


def claims_of(token: str, **settings: str) -> JWTClaims:
    accepting = JWTValidationSettings.model_validate({"JWT_SECRET_KEY": SECRET, **settings})
    return decode_jwt(token, accepting, service="test", operation="test")


async def test_a_token_is_one_that_the_service_accepts(console: Console) -> None:
    """It names the user, has an id and ends after an hour."""
    result = await console.run("token", "--user", "teacher ü", JWT_SECRET_KEY=SECRET)
    assert (result.status, result.err) == (0, "")
    claims = claims_of(result.out.rstrip("\n"))
    assert claims.subject == "teacher ü"
    assert claims.token_id
    assert claims.issued_at is not None
    assert claims.expires_at - claims.issued_at == timedelta(hours=1)


async def test_audience_issuer_and_algorithm_are_those_of_the_settings(console: Console) -> None:
    """A service configured in the same way accepts the token."""
    settings = {"JWT_AUDIENCE": "another", "JWT_ISSUER": "someone", "JWT_ALGORITHM": "HS512"}
    result = await console.run("token", "--user", "u", JWT_SECRET_KEY=SECRET, **settings)
    assert claims_of(result.out.strip(), **settings).subject == "u"


async def test_a_script_gets_token_and_end_as_json(console: Console) -> None:
    """The end is in UTC and is the token's own."""
    result = await console.run(
        "token", "--user", "u", "--expires-in", "1h30m", "--json", JWT_SECRET_KEY=SECRET
    )
    printed = json.loads(result.out)
    assert set(printed) == {"token", "expires_at"}
    expires_at = datetime.fromisoformat(printed["expires_at"])
    assert expires_at == claims_of(printed["token"]).expires_at
    assert timedelta(hours=1) < expires_at - datetime.now(UTC) <= timedelta(minutes=90)


async def test_the_secret_may_stand_in_the_env_file(console: Console) -> None:
    """A .env in the working directory counts."""
    (console.folder / ".env").write_text(f"JWT_SECRET_KEY={SECRET}\n")
    result = await console.run("token", "--user", "u")
    assert claims_of(result.out.strip()).subject == "u"


async def test_a_token_beyond_the_calendar_is_refused(console: Console) -> None:
    """A mistyped duration is told, whatever its size."""
    result = await console.run(
        "token", "--user", "u", "--expires-in", "500000w", JWT_SECRET_KEY=SECRET
    )
    assert result.status == 1
    (line,) = result.error_lines
    assert "year 9999" in line


async def test_without_secret_and_dev_it_says_what_to_do(console: Console) -> None:
    """The line offers both ways."""
    result = await console.run("token", "--user", "u")
    assert (result.status, result.out) == (1, "")
    (line,) = result.error_lines
    assert line == (
        "Error: no running `websocket-service dev` found and JWT_SECRET_KEY is not set: start "
        "one, or set JWT_SECRET_KEY"
    )


@pytest.mark.parametrize("algorithm", ["RS256", "EdDSA"])
async def test_an_algorithm_without_shared_secret_can_not_be_signed(
    console: Console, algorithm: str
) -> None:
    """The private key is the identity service's; a secret would not help."""
    for variables in ({}, {"JWT_SECRET_KEY": SECRET}):
        result = await console.run("token", "--user", "u", JWT_ALGORITHM=algorithm, **variables)
        assert result.status == 1
        (line,) = result.error_lines
        assert f"JWT_ALGORITHM is {algorithm}, but only HS256, HS384, HS512" in line


async def test_settings_that_can_not_be_read_are_named(console: Console) -> None:
    """A mistake in an unrelated variable is one line as well, and shows no secret."""
    result = await console.run(
        "token", "--user", "u", JWT_SECRET_KEY=SECRET, WEBSOCKET_PORT="nonsense"
    )
    assert result.status == 1
    (line,) = result.error_lines
    assert line.startswith("Error: WEBSOCKET_PORT is 'nonsense': ")
    assert SECRET not in result.err


async def test_a_running_dev_is_found(console: Console, dev: Dev) -> None:
    """No variable is needed beside a running `dev`."""
    newest = await console.run("token", "--user", "u")
    chosen = await console.run("token", "--user", "u", "--port", str(dev.port))
    missing = await console.run("token", "--user", "u", "--port", "1")
    assert newest.status == chosen.status == 0
    assert missing.status == 1
    assert "no `websocket-service dev` runs on port 1" in missing.err
