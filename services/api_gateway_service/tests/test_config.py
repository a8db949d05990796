"""What the gateway runs with, and what it refuses to run with."""

import re
from pathlib import Path

import pytest

from services.api_gateway_service.config import InvalidSettingsError, Settings, load_settings

SECRET = "e3mU8zTfSgqD1nVbXo5LrKyW7cAhP2Jt0iQ9GsEdZ4w"
API_KEY = "b1GkX7fRzW3oVnD9uTqYs5LcPaJe8hM2iQ0wEtCv6Zr"
PAGE = '["https://app.example.org"]'


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One in which nothing of this is set, and a directory without `.env`."""
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(f"API_GATEWAY_{name}", raising=False)


@pytest.fixture
def secure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that production accepts."""
    monkeypatch.setenv("ENVIRONMENT", "production")
    monkeypatch.setenv("JWT_SECRET_KEY", SECRET)
    monkeypatch.setenv("API_GATEWAY_INTERNAL_API_KEY", API_KEY)
    monkeypatch.setenv("API_GATEWAY_CORS_ORIGINS", PAGE)


def problems() -> list[str]:
    """Why the settings are refused."""
    with pytest.raises(InvalidSettingsError) as refused:
        load_settings()
    return refused.value.problems


def test_the_defaults_are_those_of_the_platform() -> None:
    """Whoever sets nothing gets what the other services expect."""
    settings, _ = load_settings()
    assert settings.HTTP_PORT == 4001
    assert settings.KAFKA_BOOTSTRAP_SERVERS == "kafka:9092"
    assert settings.REDIS_URL == "redis://redis:6379"
    assert (settings.RATE_LIMIT_REQUESTS, settings.RATE_LIMIT_WINDOW) == (100, 60)
    assert settings.HTTP_CLIENT_TIMEOUT_SECONDS == 30
    assert settings.HTTP_CLIENT_CONNECT_TIMEOUT_SECONDS == 10
    assert settings.allowed_origins == ["*"]
    assert not settings.is_production


def test_variables_have_the_prefix_but_for_those_that_all_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another service's settings in the same environment are not the gateway's."""
    monkeypatch.setenv("HTTP_PORT", "1")
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "elsewhere:1")
    monkeypatch.setenv("API_GATEWAY_JWT_ALGORITHM", "ES256")
    monkeypatch.setenv("API_GATEWAY_KAFKA_BOOTSTRAP_SERVERS", "a:1,b:2")
    monkeypatch.setenv("JWT_ALGORITHM", "RS256")
    monkeypatch.setenv("ENVIRONMENT", "staging")
    settings, _ = load_settings()
    assert settings.HTTP_PORT == 4001
    assert settings.KAFKA_BOOTSTRAP_SERVERS == "a:1,b:2"
    assert settings.JWT_ALGORITHM == "RS256"
    assert settings.ENVIRONMENT == "staging"


def test_a_file_counts_and_the_environment_before_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`.env` has what nobody wants to type, and an empty variable is none."""
    (tmp_path / ".env").write_text(
        "API_GATEWAY_HTTP_PORT=5001\nAPI_GATEWAY_RATE_LIMIT_WINDOW=10\nENVIRONMENT=testing\n"
    )
    monkeypatch.setenv("API_GATEWAY_HTTP_PORT", "6001")
    monkeypatch.setenv("API_GATEWAY_RATE_LIMIT_WINDOW", "")
    settings, _ = load_settings()
    assert (settings.HTTP_PORT, settings.RATE_LIMIT_WINDOW) == (6001, 10)
    assert settings.ENVIRONMENT == "testing"


def test_a_list_of_origins_is_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """Origins are written as browsers send them."""
    monkeypatch.setenv(
        "API_GATEWAY_CORS_ORIGINS", '["https://app.example.org", "http://localhost:5173"]'
    )
    settings, _ = load_settings()
    assert settings.allowed_origins == ["https://app.example.org", "http://localhost:5173"]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("API_GATEWAY_HTTP_PORT", "70000"),
        ("API_GATEWAY_HTTP_PORT", "a"),
        ("API_GATEWAY_RATE_LIMIT_REQUESTS", "0"),
        ("API_GATEWAY_HTTP_CLIENT_TIMEOUT_SECONDS", "-1"),
        ("API_GATEWAY_LOG_LEVEL", "loud"),
        ("API_GATEWAY_CORS_ORIGINS", "https://app.example.org"),
        ("API_GATEWAY_CORS_ORIGINS", '"https://app.example.org"'),
        ("API_GATEWAY_CORS_ORIGINS", '["https://app.example.org/"]'),
        ("API_GATEWAY_CORS_ORIGINS", '["https://App.example.org"]'),
        ("API_GATEWAY_CORS_ORIGINS", '["app.example.org"]'),
        ("API_GATEWAY_CORS_ORIGINS", '["https://u:p@app.example.org"]'),
        ("API_GATEWAY_CORS_ORIGINS", '["null"]'),
        ("API_GATEWAY_RESULT_AGGREGATOR_URL", "result-aggregator:4003"),
        ("API_GATEWAY_RESULT_AGGREGATOR_URL", "http://host/?a=b"),
        ("API_GATEWAY_RESULT_AGGREGATOR_URL", "http://u:p@host"),
        ("API_GATEWAY_REDIS_URL", "http://redis"),
        ("API_GATEWAY_KAFKA_BOOTSTRAP_SERVERS", "kafka"),
        ("ENVIRONMENT", "prod"),
        ("JWT_ALGORITHM", "none"),
    ],
)
def test_a_value_that_cannot_be_is_named_with_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    """The sentence begins with the variable as it has to be written."""
    monkeypatch.setenv(variable, value)
    (problem,) = problems()
    assert problem.startswith((f"{variable} ", f"{variable}["))


def test_a_secret_that_is_wrong_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that fails in public gives nothing away."""
    monkeypatch.setenv("API_GATEWAY_REDIS_URL", "http://:sekret@redis")
    monkeypatch.setenv("API_GATEWAY_KAFKA_SECURITY_PROTOCOL", "SASL_PLAINTEXT")
    monkeypatch.setenv("API_GATEWAY_KAFKA_SASL_PASSWORD", "sekret")
    assert "sekret" not in "".join(problems())


@pytest.mark.usefixtures("secure")
def test_production_accepts_what_is_secure() -> None:
    """Secrets that nobody can guess and pages that are known: no complaint."""
    _, found = load_settings()
    assert found == []


@pytest.mark.usefixtures("secure")
@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("JWT_SECRET_KEY", ""),
        ("JWT_SECRET_KEY", "changeme"),
        ("JWT_SECRET_KEY_PREVIOUS", "short"),
        ("API_GATEWAY_INTERNAL_API_KEY", ""),
        ("API_GATEWAY_INTERNAL_API_KEY", "password"),
        ("API_GATEWAY_INTERNAL_API_KEY", SECRET),
        ("API_GATEWAY_CORS_ORIGINS", ""),
        ("API_GATEWAY_CORS_ORIGINS", '["*"]'),
    ],
)
def test_production_refuses_what_is_not(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    """Each by a sentence of its own; elsewhere the same sentence is a warning."""
    monkeypatch.setenv(variable, value)
    (problem,) = problems()
    assert problem.startswith(f"{variable} ")
    monkeypatch.setenv("ENVIRONMENT", "staging")
    _, warnings = load_settings()
    assert warnings == [problem]


@pytest.mark.usefixtures("secure")
def test_keys_come_from_their_issuer_in_safety(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over plain http somebody on the way could put in keys of their own."""
    monkeypatch.setenv("JWT_SECRET_KEY", "")
    monkeypatch.setenv("JWT_ALGORITHM", "ES256")
    monkeypatch.setenv("JWT_JWKS_URL", "http://identity.example.org/jwks.json")
    (problem,) = problems()
    assert problem.startswith("JWT_JWKS_URL ")
    monkeypatch.setenv("JWT_JWKS_URL", "https://identity.example.org/jwks.json")
    assert load_settings()[1] == []


def test_the_readme_has_every_setting() -> None:
    """Whoever looks for a variable finds it, and none that does not exist."""
    readme = Path(__file__).parents[1].joinpath("README.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"API_GATEWAY_([A-Z_]+)`", readme))
    ours = {name for name, field in Settings.model_fields.items() if field.validation_alias is None}
    assert documented == ours


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("API_GATEWAY_KAFKA_BOOTSTRAP_SERVER", "API_GATEWAY_KAFKA_BOOTSTRAP_SERVERS"),
        ("API_GATEWAY_JWT_SECRET_KEY", "JWT_SECRET_KEY"),
    ],
)
def test_a_misspelt_variable_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, meant: str
) -> None:
    """A variable with our prefix that sets nothing is told, also in `.env`, with what was meant."""
    said = f"unknown variable {variable}: did you mean {meant}?"
    assert said not in load_settings()[1]
    monkeypatch.setenv(variable, "x")
    assert said in load_settings()[1]
    monkeypatch.delenv(variable)
    (tmp_path / ".env").write_text(f"{variable}=x\n", encoding="utf-8")
    assert said in load_settings()[1]


@pytest.mark.usefixtures("secure")
def test_a_misspelt_variable_stops_no_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Production starts with a variable too many; where it refuses, what was meant is told too."""
    monkeypatch.setenv("API_GATEWAY_INTERNAL_API_KEYS", "x")
    said = (
        "unknown variable API_GATEWAY_INTERNAL_API_KEYS: did you mean API_GATEWAY_INTERNAL_API_KEY?"
    )
    assert load_settings()[1] == [said]
    monkeypatch.delenv("API_GATEWAY_INTERNAL_API_KEY")
    missing, unknown = problems()
    assert missing.startswith("API_GATEWAY_INTERNAL_API_KEY is not set")
    assert unknown == said


@pytest.mark.usefixtures("secure")
@pytest.mark.parametrize(
    "variable",
    [
        *("API_GATEWAY_PORT", "API_GATEWAY_PORT_4001_TCP", "API_GATEWAY_PORT_4001_TCP_ADDR"),
        *("API_GATEWAY_SERVICE_HOST", "API_GATEWAY_SERVICE_PORT_HTTP"),
        *("API_GATEWAY_SERVICE_SERVICE_HOST", "API_GATEWAY_SERVICE_PORT_4001_TCP_PROTO"),
        "API_GATEWAY_PUBLISHED_PORT",
    ],
)
def test_variables_of_the_orchestrator_are_not_ours(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """What Kubernetes and Compose set for a service of our name is nobody's mistake."""
    monkeypatch.setenv(variable, "tcp://10.0.0.1:4001")
    assert load_settings()[1] == []
