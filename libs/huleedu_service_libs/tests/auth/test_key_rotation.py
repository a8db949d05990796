"""Keys that change while the service runs, and settings that contradict each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr, ValidationError

from huleedu_service_libs.auth import JWTValidationSettings, TokenVerifier, decode_jwt
from huleedu_service_libs.error_handling import HuleEduError
from huleedu_service_libs.testing.jwt_helpers import create_jwt
from huleedu_service_libs.testing.polling import until
from huleedu_service_libs.testing.signing_keys import SigningKey
from libs.huleedu_service_libs.tests.auth.token_claims import (
    ACCEPTED,
    BAD_SIGNATURE,
    good_claims,
    outcome,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KEY = SigningKey.generate("ES256", "key-1")
NEXT_KEY = SigningKey.generate("ES256", "key-2")
OLD, NEW = "the-old-secret-0123456789-0123456789", "the-new-secret-0123456789-0123456789"


@pytest.fixture(autouse=True)
def _no_jwt_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in JWTValidationSettings.model_fields:
        monkeypatch.delenv(name, raising=False)


async def test_both_secrets_count_during_a_rotation() -> None:
    """Tokens of the previous secret are good until it is taken out of the settings."""
    rotating = JWTValidationSettings(
        JWT_SECRET_KEY=SecretStr(NEW), JWT_SECRET_KEY_PREVIOUS=SecretStr(OLD)
    )
    rotated = JWTValidationSettings(JWT_SECRET_KEY=SecretStr(NEW))
    by_old, by_new = create_jwt(OLD, good_claims()), create_jwt(NEW, good_claims())
    verifier = TokenVerifier(rotating, service="door")
    assert verifier.statistics().keys == 2
    for token in (by_old, by_new):
        assert await outcome(verifier, token) == ACCEPTED
        assert decode_jwt(token, rotating, service="door", operation="test").subject == ACCEPTED
    assert await outcome(verifier, create_jwt("third", good_claims())) == BAD_SIGNATURE
    assert rotating.get_jwt_verification_key() == NEW

    verifier = TokenVerifier(rotated, service="door")
    assert await outcome(verifier, by_new) == ACCEPTED
    assert await outcome(verifier, by_old) == BAD_SIGNATURE


async def test_a_previous_secret_alone_is_not_enough() -> None:
    """The variable of the current secret is named when only the previous one is set."""
    settings = JWTValidationSettings(JWT_SECRET_KEY_PREVIOUS=SecretStr(OLD))
    assert settings.key_problem == "JWT_SECRET_KEY must be set for HS256"


async def test_a_previous_secret_that_is_a_public_key_is_refused() -> None:
    """The previous secret is as good a way in as the current one, and checked like it."""
    settings = JWTValidationSettings(
        JWT_SECRET_KEY=SecretStr(NEW), JWT_SECRET_KEY_PREVIOUS=SecretStr(KEY.public_pem)
    )
    assert settings.key_problem == "JWT_SECRET_KEY_PREVIOUS is not a key for HS256"


def test_secrets_stay_out_of_sight() -> None:
    """Printing the settings shows neither secret."""
    settings = JWTValidationSettings(
        JWT_SECRET_KEY=SecretStr(NEW), JWT_SECRET_KEY_PREVIOUS=SecretStr(OLD)
    )
    shown = f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"
    assert NEW not in shown
    assert OLD not in shown


async def _until(verifier: TokenVerifier, token: str, wanted: str) -> None:
    async def is_so() -> bool:
        return await outcome(verifier, token) == wanted

    await until(is_so)


async def test_a_key_file_is_read_again(tmp_path: Path) -> None:
    """A new key in the file counts without a restart, and the one before it no more."""
    path = tmp_path / "key.pem"
    path.write_text(KEY.public_pem)
    settings = JWTValidationSettings(JWT_ALGORITHM="ES256", JWT_PUBLIC_KEY_PATH=path)
    verifier = TokenVerifier(settings, service="door")
    by_first, by_next = KEY.sign(good_claims()), NEXT_KEY.sign(good_claims())
    assert await outcome(verifier, by_first) == ACCEPTED
    assert await outcome(verifier, by_next) == BAD_SIGNATURE

    path.write_text(NEXT_KEY.public_pem)
    await _until(verifier, by_next, ACCEPTED)
    assert await outcome(verifier, by_first) == BAD_SIGNATURE


async def test_without_a_usable_key_file_nobody_is_let_in(tmp_path: Path) -> None:
    """At the start a key file has to hold a key; what it lacks is said until it does."""
    path = tmp_path / "key.pem"
    settings = JWTValidationSettings(JWT_ALGORITHM="ES256", JWT_PUBLIC_KEY_PATH=path)
    verifier = TokenVerifier(settings, service="door")
    token = KEY.sign(good_claims())
    assert await outcome(verifier, token) == "CONFIGURATION_ERROR"
    assert verifier.problem == "JWT_PUBLIC_KEY_PATH cannot be read: FileNotFoundError"
    path.write_text(KEY.public_pem[:40])
    assert await outcome(verifier, token) == "CONFIGURATION_ERROR"
    assert verifier.problem == "JWT_PUBLIC_KEY_PATH is not a public key for ES256"
    path.write_text(KEY.public_pem)
    assert await outcome(verifier, token) == ACCEPTED
    assert verifier.problem is None


def _empty(path: Path) -> None:
    path.write_text("")


def _cut(path: Path) -> None:
    path.write_text(KEY.public_pem[:40])


def _fill_with_garbage(path: Path) -> None:
    path.write_bytes(b"\xff" * 100_000)


def _take_away(path: Path) -> None:
    path.unlink()


def _put_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("spoil", [_empty, _cut, _fill_with_garbage, _take_away, _put_directory])
async def test_a_key_file_in_the_making_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None]
) -> None:
    """While the file is of no use its last key counts, and the log says so once; then the new."""
    caplog.set_level("INFO")
    path, new = tmp_path / "key.pem", tmp_path / "new.pem"
    path.write_text(KEY.public_pem)
    settings = JWTValidationSettings(JWT_ALGORITHM="ES256", JWT_PUBLIC_KEY_PATH=path)
    verifier = TokenVerifier(settings, service="door")
    by_first, by_next = KEY.sign(good_claims()), NEXT_KEY.sign(good_claims())
    assert await outcome(verifier, by_first) == ACCEPTED

    spoil(path)

    async def is_said() -> bool:
        assert await outcome(verifier, by_first) == ACCEPTED
        assert verifier.problem is None
        return any(record.levelname == "WARNING" for record in caplog.records)

    await until(is_said)
    if path.is_dir():
        path.rmdir()
    new.write_text(NEXT_KEY.public_pem)
    new.replace(path)
    await _until(verifier, by_next, ACCEPTED)
    assert await outcome(verifier, by_first) == BAD_SIGNATURE
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "JWT_PUBLIC_KEY_PATH holds another key" in caplog.messages[1]
    assert KEY.public_pem.splitlines()[1] not in caplog.text


async def test_each_time_a_key_file_is_spoilt_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each time a key file is spoilt and mended there are two lines in the log."""
    caplog.set_level("INFO")
    path = tmp_path / "key.pem"
    path.write_text(KEY.public_pem)
    settings = JWTValidationSettings(JWT_ALGORITHM="ES256", JWT_PUBLIC_KEY_PATH=path)
    verifier = TokenVerifier(settings, service="door")
    token = KEY.sign(good_claims())
    assert await outcome(verifier, token) == ACCEPTED
    for lines in (1, 2, 3, 4):
        path.write_text("" if lines % 2 else KEY.public_pem)

        async def is_said(lines: int = lines) -> bool:
            assert await outcome(verifier, token) == ACCEPTED
            return len(caplog.records) == lines

        await until(is_said)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"] * 2


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"JWT_JWKS_URL": "https://id.example.org/keys"}, ["JWT_JWKS_URL", "JWT_ALGORITHM"]),
        ({"JWT_ALGORITHM": "ES256"}, ["JWT_PUBLIC_KEY", "JWT_PUBLIC_KEY_PATH", "JWT_JWKS_URL"]),
        (
            {
                "JWT_ALGORITHM": "ES256",
                "JWT_PUBLIC_KEY": KEY.public_pem,
                "JWT_JWKS_URL": "https://id.example.org/keys",
            },
            ["JWT_PUBLIC_KEY and JWT_JWKS_URL"],
        ),
        (
            {
                "JWT_ALGORITHM": "ES256",
                "JWT_PUBLIC_KEY_PATH": "key.pem",
                "JWT_JWKS_URL": "https://id.example.org/keys",
            },
            ["JWT_PUBLIC_KEY_PATH and JWT_JWKS_URL"],
        ),
        (
            {
                "JWT_ALGORITHM": "ES256",
                "JWT_PUBLIC_KEY": KEY.public_pem,
                "JWT_PUBLIC_KEY_PATH": "key.pem",
            },
            ["JWT_PUBLIC_KEY and JWT_PUBLIC_KEY_PATH"],
        ),
    ],
)
async def test_settings_that_contradict_each_other_are_named(
    variables: dict[str, str], named: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two sources of keys, or none, nobody is let in, and the variables are in the message."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings = JWTValidationSettings()
    async with TokenVerifier(settings, service="door") as verifier:
        assert await outcome(verifier, KEY.sign(good_claims())) == "CONFIGURATION_ERROR"
        assert verifier.problem == settings.key_problem
        assert all(name in (verifier.problem or "") for name in named)


@pytest.mark.parametrize(
    "url",
    [
        "id.example.org/keys",
        "ftp://id.example.org/",
        "file:///etc/passwd",
        "https://",
        "http://:80",
        "https://id.example.org:99999/",
        "https://[::1",
        "https://id.example.org/a b",
    ],
)
def test_what_is_no_address_of_a_key_server_is_named(url: str) -> None:
    """A URL that nothing can be fetched from is found before anybody tries."""
    settings = JWTValidationSettings(JWT_ALGORITHM="RS256", JWT_JWKS_URL=url)
    assert settings.key_problem == "JWT_JWKS_URL is not an http or https address"


def test_fetched_keys_are_for_the_verifier() -> None:
    """The plain function cannot fetch keys and says who can."""
    settings = JWTValidationSettings(
        JWT_ALGORITHM="ES256", JWT_JWKS_URL="https://id.example.org/keys"
    )
    assert settings.key_problem is None
    for ask in (
        settings.get_jwt_verification_key,
        lambda: decode_jwt("a.b.c", settings, service="door", operation="test"),
    ):
        with pytest.raises(HuleEduError) as caught:
            ask()
        assert caught.value.error_code == "CONFIGURATION_ERROR"
        assert "TokenVerifier" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("JWT_LEEWAY_SECONDS", -1),
        ("JWT_LEEWAY_SECONDS", 301),
        ("JWT_LEEWAY_SECONDS", float("nan")),
        ("JWT_JWKS_CACHE_SECONDS", 0),
        ("JWT_JWKS_COOLDOWN_SECONDS", 0),
        ("JWT_ALGORITHM", "RS512"),
        ("JWT_ALGORITHM", "ES384"),
    ],
)
def test_values_out_of_bounds_stop_the_start(name: str, value: Any) -> None:
    """A leeway of an hour, or an algorithm that is not among the seven, is refused at once."""
    with pytest.raises(ValidationError, match=name):
        JWTValidationSettings(**{name: value})
