"""The settings: where they come from, and which of them stop the start."""

import ast
from pathlib import Path

import pytest
from pydantic import ValidationError

from services.websocket_service import config
from services.websocket_service.config import Environment, LogLevel, Settings
from services.websocket_service.effective_settings import load_settings

SECRET = "a-secret-of-the-tests-with-more-than-32-bytes"
PREVIOUS_SECRET = "the-last-secret-of-the-tests-with-more-than-32-bytes"
PRODUCTION = {
    "ENVIRONMENT": "production",
    "JWT_SECRET_KEY": SECRET,
    "CORS_ORIGINS": '["https://app.example.org"]',
}


class Environ:
    """The environment and the working directory of the process, empty at first."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self._monkeypatch = monkeypatch
        self._folder = folder
        monkeypatch.chdir(folder)
        for name in (*Settings.model_fields, "WEBSOCKET_PORT"):
            monkeypatch.delenv(name, raising=False)

    def set(self, **variables: str) -> None:
        for name, value in variables.items():
            self._monkeypatch.setenv(name, value)

    def write_dotenv(self, **variables: str) -> None:
        lines = [f"{name}={value}\n" for name, value in variables.items()]
        (self._folder / ".env").write_text("".join(lines), encoding="utf-8")


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Environ:
    return Environ(monkeypatch, tmp_path)


def test_fixed_defaults(environ: Environ) -> None:
    """Without any variable the documented defaults hold."""
    environ.set()
    settings = Settings()
    assert settings.WEBSOCKET_SERVICE_PORT == 8081
    assert settings.WEBSOCKET_PING_INTERVAL == 30
    assert settings.WEBSOCKET_IDLE_TIMEOUT == 300
    assert settings.WEBSOCKET_MAX_CONNECTIONS_PER_USER == 5
    assert settings.REDIS_CHANNEL_PREFIX == "ws"
    assert settings.ENVIRONMENT is Environment.DEVELOPMENT
    assert settings.LOG_LEVEL is LogLevel.INFO
    assert settings.CORS_ORIGINS == []


def test_variables_count(environ: Environ) -> None:
    """Each variable sets the setting of its name; lists are JSON."""
    environ.set(WEBSOCKET_IDLE_TIMEOUT="90.5", CORS_ORIGINS='["https://a", "https://b"]')
    settings = Settings()
    assert settings.WEBSOCKET_IDLE_TIMEOUT == 90.5
    assert settings.CORS_ORIGINS == ["https://a", "https://b"]


def test_empty_variable_is_unset(environ: Environ) -> None:
    """A variable that a deployment leaves empty leaves the default in place, whichever it is."""
    defaults = Settings().model_dump()
    environ.set(**dict.fromkeys(Settings.model_fields, ""))
    assert Settings().model_dump() == defaults
    assert load_settings().model_dump() == defaults


def test_a_service_of_kubernetes_is_no_port(environ: Environ) -> None:
    """What Kubernetes puts into each pod for a Service called websocket-service does not count."""
    environ.set(WEBSOCKET_SERVICE_PORT="tcp://10.0.0.1:80")
    assert Settings().WEBSOCKET_SERVICE_PORT == 8081


@pytest.mark.parametrize("name", ["WEBSOCKET_SERVICE_PORT", "WEBSOCKET_PORT"])
def test_port_has_two_names(environ: Environ, name: str) -> None:
    """The port may be set by its short name too."""
    environ.set(**{name: "9000"})
    assert Settings().WEBSOCKET_SERVICE_PORT == 9000


def test_full_name_of_the_port_wins(environ: Environ) -> None:
    """Of two names for the port the full one counts."""
    environ.set(WEBSOCKET_SERVICE_PORT="9000", WEBSOCKET_PORT="9001")
    assert Settings().WEBSOCKET_SERVICE_PORT == 9000


def test_dotenv(environ: Environ) -> None:
    """A `.env` file sets what the environment does not; other people's lines do no harm."""
    environ.write_dotenv(WEBSOCKET_PORT="9000", REDIS_URL="redis://file:1", SOMEBODY_ELSES="x")
    environ.set(REDIS_URL="redis://environment:1")
    settings = Settings()
    assert settings.WEBSOCKET_SERVICE_PORT == 9000
    assert settings.REDIS_URL == "redis://environment:1"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WEBSOCKET_SERVICE_PORT", "65536"),
        ("WEBSOCKET_PING_INTERVAL", "0"),
        ("WEBSOCKET_IDLE_TIMEOUT", "-1"),
        ("WEBSOCKET_MAX_CONNECTIONS", "0"),
        ("WEBSOCKET_FRAME_BURST", "many"),
        ("WEBSOCKET_MAX_FRAMES_PER_SECOND", "0"),
        ("WEBSOCKET_OUTBOX_MAX_AGE", "0"),
        ("WEBSOCKET_OUTBOXES_MAX_BYTES", "0"),
        ("WEBSOCKET_LEASE_DURATION", "0.9"),
        ("WEBSOCKET_REVOCATION_RETENTION", "59"),
        ("HYPERCORN_TUNING", "perhaps"),
        ("REDIS_TIMEOUT", "0"),
        ("LOG_LEVEL", "chatty"),
        ("ENVIRONMENT", "moon"),
        ("JWT_ALGORITHM", "none"),
    ],
)
def test_invalid_value_is_refused(environ: Environ, name: str, value: str) -> None:
    """A value that cannot be used is reported with its variable."""
    environ.set(**{name: value})
    with pytest.raises(ValidationError) as caught:
        Settings()
    (problem,) = caught.value.errors()
    assert problem["loc"] == (name,)


def test_sound_settings_have_no_problem(environ: Environ) -> None:
    """Production starts with a good secret and a list of origins."""
    environ.set(**PRODUCTION)
    settings = Settings()
    assert settings.is_production
    assert settings.problems() == []
    assert settings.insecurities() == []
    assert settings.token_key_problem is None


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"JWT_SECRET_KEY": ""}, "JWT_SECRET_KEY"),
        ({"JWT_SECRET_KEY": "   "}, "JWT_SECRET_KEY"),
        ({"CORS_ORIGINS": "[]"}, "CORS_ORIGINS"),
        ({"CORS_ORIGINS": '["*"]'}, "CORS_ORIGINS has '*'"),
        ({"CORS_ORIGINS": '["https://a.example", "null"]'}, "CORS_ORIGINS has 'null'"),
        ({"CORS_ORIGINS": '["app.example.org"]'}, "CORS_ORIGINS has 'app.example.org'"),
        ({"CORS_ORIGINS": '["https://*.org"]'}, "CORS_ORIGINS has 'https://*.org'"),
        ({"WEBSOCKET_TRUSTED_PROXIES": '["10.0.0.1/8"]'}, "WEBSOCKET_TRUSTED_PROXIES has"),
        ({"WEBSOCKET_TRUSTED_PROXIES": '["::/0"]'}, "WEBSOCKET_TRUSTED_PROXIES has '::/0'"),
        ({"JWT_ALGORITHM": "RS256"}, "JWT_PUBLIC_KEY"),
        ({"WEBSOCKET_PING_INTERVAL": "300"}, "WEBSOCKET_IDLE_TIMEOUT"),
        ({"WEBSOCKET_PING_INTERVAL": "301"}, "WEBSOCKET_IDLE_TIMEOUT"),
        ({"JWT_SECRET_KEY": "changeme"}, "JWT_SECRET_KEY is a well-known value"),
        ({"JWT_SECRET_KEY": f"{SECRET}\n"}, "JWT_SECRET_KEY begins or ends with white space"),
        ({"JWT_SECRET_KEY_PREVIOUS": "changeme"}, "JWT_SECRET_KEY_PREVIOUS is"),
        ({"INTERNAL_API_KEY": "changeme"}, "INTERNAL_API_KEY is a well-known value"),
        ({"INTERNAL_API_KEY": SECRET}, "INTERNAL_API_KEY is the same as JWT_SECRET_KEY:"),
        (
            {"INTERNAL_API_KEY": PREVIOUS_SECRET, "JWT_SECRET_KEY_PREVIOUS": PREVIOUS_SECRET},
            "INTERNAL_API_KEY is the same as JWT_SECRET_KEY_PREVIOUS",
        ),
        ({"JWT_JWKS_URL": "https://id.example.org/keys"}, "JWT_JWKS_URL"),
        (
            {"JWT_ALGORITHM": "ES256", "JWT_JWKS_URL": "http://id.example.org/keys"},
            "JWT_JWKS_URL is not https",
        ),
    ],
)
def test_production_refuses(environ: Environ, changes: dict[str, str], named: str) -> None:
    """In production each unsafe setting is a problem that names its variable."""
    environ.set(**{**PRODUCTION, **changes})
    (problem,) = Settings().problems()
    assert problem.startswith(named)


def test_several_problems_are_told_at_once(environ: Environ) -> None:
    """Whoever sets the service up learns everything that is missing in one go."""
    environ.set(ENVIRONMENT="production", WEBSOCKET_IDLE_TIMEOUT="10")
    assert [problem.split()[0] for problem in Settings().problems()] == [
        "JWT_SECRET_KEY",
        "WEBSOCKET_IDLE_TIMEOUT",
        "CORS_ORIGINS",
    ]


@pytest.mark.parametrize("environment", ["development", "testing", "staging"])
def test_elsewhere_simple_secrets_do(environ: Environ, environment: str) -> None:
    """Outside of production a well-known secret and any origin are no problem, and can be told."""
    environ.set(ENVIRONMENT=environment, JWT_SECRET_KEY="dev-secret")
    settings = Settings()
    assert settings.problems() == []
    assert [told.split()[0] for told in settings.insecurities()] == [
        "JWT_SECRET_KEY",
        "CORS_ORIGINS",
    ]


@pytest.mark.parametrize(
    ("environment", "url"),
    [
        ("production", "https://id.example.org/keys"),
        ("production", "http://127.0.0.1:8080/keys"),
        ("production", "http://localhost:8080/keys"),
        ("production", "http://[::1]:8080/keys"),
        ("staging", "http://id.example.org/keys"),
    ],
)
def test_a_key_server_that_nobody_can_impersonate_will_do(
    environ: Environ, environment: str, url: str
) -> None:
    """Keys are fetched by https or from this host; outside of production, by http as well."""
    environ.set(
        **{**PRODUCTION, "ENVIRONMENT": environment, "JWT_ALGORITHM": "ES256", "JWT_JWKS_URL": url}
    )
    assert Settings().problems() == []


def test_any_origin_is_fine_elsewhere(environ: Environ) -> None:
    """Outside of production every page may be let in, in so many words."""
    environ.set(JWT_SECRET_KEY=SECRET, CORS_ORIGINS='["*"]')
    assert Settings().problems() == []


def test_repr_hides_the_secret(environ: Environ) -> None:
    """Settings that are printed by accident do not show the secret."""
    environ.set(**PRODUCTION)
    assert SECRET not in repr(Settings())


def test_every_setting_is_read() -> None:
    """A setting that can be changed changes something."""
    service = Path(config.__file__).parent
    modules = [path for path in service.rglob("*.py") if "tests" not in path.parts]
    read = {
        node.attr
        for path in modules
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
    }
    own = set(Settings.__annotations__) - {"model_config"}
    assert own - read == set()
