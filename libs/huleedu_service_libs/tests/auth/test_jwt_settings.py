from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr, ValidationError
from pydantic_settings import SettingsConfigDict

from huleedu_service_libs.auth.jwt_settings import JWTValidationSettings
from huleedu_service_libs.error_handling import HuleEduError

if TYPE_CHECKING:
    from pathlib import Path

PUBLIC_KEY = """-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=
-----END PUBLIC KEY-----
"""


class PrefixedSettings(JWTValidationSettings):
    model_config = SettingsConfigDict(env_prefix="SOME_SERVICE_")

    HTTP_PORT: int = 1


@pytest.fixture(autouse=True)
def _no_jwt_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in JWTValidationSettings.model_fields:
        monkeypatch.delenv(name, raising=False)


def test_prefix_of_a_service_does_not_reach_the_shared_variables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One JWT_SECRET_KEY serves every service, whatever prefix its own settings carry."""
    monkeypatch.setenv("JWT_SECRET_KEY", "shared")
    monkeypatch.setenv("JWT_AUDIENCE", "somebody-else")
    monkeypatch.setenv("SOME_SERVICE_HTTP_PORT", "4001")
    settings = PrefixedSettings()
    assert settings.get_jwt_verification_key() == "shared"
    assert (settings.JWT_AUDIENCE, settings.HTTP_PORT) == ("somebody-else", 4001)


def test_defaults_are_those_of_the_identity_service() -> None:
    """Without configuration a service expects the platform's audience and issuer."""
    settings = JWTValidationSettings()
    assert settings.JWT_ALGORITHM == "HS256"
    assert settings.JWT_AUDIENCE == "huleedu-platform"
    assert settings.JWT_ISSUER == "huleedu-identity-service"


@pytest.mark.parametrize("secret", [None, "", "  "])
def test_missing_secret_is_named(secret: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service without a secret says which variable it lacks, and in which service and step."""
    if secret is not None:
        monkeypatch.setenv("JWT_SECRET_KEY", secret)
    with pytest.raises(HuleEduError) as caught:
        JWTValidationSettings().get_jwt_verification_key(service="door", operation="start")
    error = caught.value
    assert error.error_code == "CONFIGURATION_ERROR"
    assert "JWT_SECRET_KEY" in str(error)
    assert (error.service, error.operation) == ("door", "start")


def test_secret_stays_out_of_sight() -> None:
    """Printing the settings does not print the secret."""
    settings = JWTValidationSettings(JWT_SECRET_KEY=SecretStr("a-well-kept-secret"))
    assert "a-well-kept-secret" not in f"{settings!r} {settings} {settings.model_dump()}"


@pytest.mark.parametrize("algorithm", ["none", "None", "HS1", "hs256", "RS256,HS256"])
def test_unknown_algorithm_stops_the_start(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An algorithm that is none of the known ones is refused when the settings are read."""
    monkeypatch.setenv("JWT_ALGORITHM", algorithm)
    with pytest.raises(ValidationError, match="JWT_ALGORITHM"):
        JWTValidationSettings()


def test_public_key_is_no_hmac_secret() -> None:
    """A public key, which anybody may have, never verifies tokens of an HS algorithm."""
    settings = JWTValidationSettings(JWT_SECRET_KEY=SecretStr(PUBLIC_KEY))
    with pytest.raises(HuleEduError) as caught:
        settings.get_jwt_verification_key()
    assert caught.value.error_code == "CONFIGURATION_ERROR"
    assert "JWT_SECRET_KEY" in str(caught.value)
    assert "MCowBQYDK2Vw" not in repr(caught.value.to_dict())


def test_secret_is_no_public_key() -> None:
    """With an asymmetric algorithm the HMAC secret is not fallen back to."""
    settings = JWTValidationSettings(JWT_ALGORITHM="RS256", JWT_SECRET_KEY=SecretStr("secret"))
    with pytest.raises(HuleEduError) as caught:
        settings.get_jwt_verification_key()
    assert caught.value.error_code == "CONFIGURATION_ERROR"
    assert "JWT_PUBLIC_KEY or JWT_PUBLIC_KEY_PATH" in str(caught.value)


def test_what_is_no_public_key_at_all_is_refused() -> None:
    """Text that is no key is a configuration error, not a failure at somebody's first request."""
    settings = JWTValidationSettings(JWT_ALGORITHM="EdDSA", JWT_PUBLIC_KEY="not a key")
    with pytest.raises(HuleEduError) as caught:
        settings.get_jwt_verification_key()
    assert caught.value.error_code == "CONFIGURATION_ERROR"
    assert "not a key" not in repr(caught.value.to_dict())


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_unreadable_key_file_is_named(content: bytes | None, tmp_path: Path) -> None:
    """A key file that is absent or no text is reported under its variable's name."""
    path = tmp_path / "key.pem"
    if content is not None:
        path.write_bytes(content)
    settings = JWTValidationSettings(JWT_ALGORITHM="ES256", JWT_PUBLIC_KEY_PATH=path)
    with pytest.raises(HuleEduError) as caught:
        settings.get_jwt_verification_key()
    assert caught.value.error_code == "CONFIGURATION_ERROR"
    assert "JWT_PUBLIC_KEY_PATH cannot be read" in str(caught.value)
