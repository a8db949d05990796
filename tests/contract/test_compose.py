"""What can be known of the Compose file without an engine."""

import asyncio
import os
import re
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from pydantic import ValidationError
from pydantic_settings import BaseSettings

from common_core.event_enums import ProcessingEvent, topic_name
from huleedu_service_libs.redis_server import RedisServer
from services.api_gateway_service.config import Settings as GatewaySettings
from services.api_gateway_service.config import load_settings as load_gateway_settings
from services.websocket_service.config import Settings as WebSocketSettings
from services.websocket_service.effective_settings import load_settings as load_websocket_settings
from tests.contract.compose_file import (
    ComposeFile,
    MissingVariableError,
    Service,
    read_compose_file,
)
from tests.contract.images import (
    GATEWAY_IMAGE,
    IMAGES,
    WEBSOCKET_IMAGE,
    ServiceImage,
    UnpackedImage,
    health,
    variables,
)
from tests.service_process import REPO, SECRET, free_port

COMPOSE_FILE = REPO / "docker/docker-compose.services.yml"
README = REPO / "docker/README.md"
KAFKA_IMAGE = "apache/kafka"
REQUIRED = {
    "API_GATEWAY_INTERNAL_API_KEY": "a-key-of-the-result-aggregator-with-32-bytes",
    "CORS_ORIGINS": '["https://app.example.org"]',
}
VARIABLES = {**REQUIRED, "JWT_SECRET_KEY": SECRET}
KEY_SERVER = {"JWT_ALGORITHM": "ES256", "JWT_JWKS_URL": "https://id.example.org/keys"}
START_TIMEOUT_S = 60

CONTAINERS = {
    "websocket_service": WEBSOCKET_IMAGE,
    "websocket_bridge": WEBSOCKET_IMAGE,
    "api_gateway_service": GATEWAY_IMAGE,
}
"""Those that run images of ours."""
CLIENTS: dict[str, type[WebSocketSettings | GatewaySettings]] = {
    "websocket_service": WebSocketSettings,
    "api_gateway_service": GatewaySettings,
}
"""Those that take clients, and so tokens, and what they read."""
LOADERS: dict[str, Callable[[], BaseSettings]] = {
    "websocket_service": load_websocket_settings,
    "api_gateway_service": lambda: load_gateway_settings()[0],
}
TOKENS = {
    "JWT_ALGORITHM": "HS512",
    "JWT_AUDIENCE": "an-audience",
    "JWT_ISSUER": "an-issuer",
    "JWT_JWKS_URL": "https://id.example.org/keys",
    "JWT_LEEWAY_SECONDS": "3",
    "JWT_PUBLIC_KEY": "a key",
    "JWT_SECRET_KEY_PREVIOUS": "the-last-secret-of-the-tests-with-more-than-32-bytes",
}


@pytest.fixture(scope="module")
def compose() -> ComposeFile:
    return read_compose_file(COMPOSE_FILE, VARIABLES)


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Away from a developer's `.env`."""
    monkeypatch.chdir(tmp_path)


def environment(service: Service) -> dict[str, str]:
    return {name: str(value) for name, value in service.environment.items()}


def healthcheck(name: str, compose: ComposeFile, unpacked: UnpackedImage) -> list[str]:
    """The container's, else the image's."""
    check = compose.services[name].healthcheck
    return unpacked.stage.last("HEALTHCHECK").exec_form() if check is None else check.test[1:]


@asynccontextmanager
async def running(
    command: list[str], variables: Mapping[str, str], directory: Path, probe: list[str]
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A container's process, once its health check passes."""
    with tempfile.TemporaryFile() as log:
        process = await asyncio.create_subprocess_exec(
            *command, env=variables, cwd=directory, stdout=log, stderr=log
        )
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while await health(probe, variables) != 0:
                    assert process.returncode is None, "ended at its start"
            yield process
        except BaseException as error:
            error.add_note(os.pread(log.fileno(), 100_000, 0).decode(errors="replace"))
            raise
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


@pytest.mark.parametrize("name", CONTAINERS)
async def test_container_starts_is_healthy_and_stops(
    name: str, compose: ComposeFile, redis_server: RedisServer, tmp_path: Path
) -> None:
    """With Compose's settings each command starts, Kafka or not, is healthy and ends cleanly."""
    unpacked = UnpackedImage(CONTAINERS[name], tmp_path)
    service = compose.services[name]
    replaced = {
        "redis://redis:6379": redis_server.url,
        "kafka:9092": f"127.0.0.1:{free_port()}",
        "8081": str(free_port()),
        "8082": str(free_port()),
        "4001": str(free_port()),
    }
    settings = {key: replaced.get(value, value) for key, value in environment(service).items()}
    probe = healthcheck(name, compose, unpacked)
    words = service.command
    assert not isinstance(words, str), "a shell would keep the signal"
    async with running(
        unpacked.command(words), {**unpacked.environment(), **settings}, unpacked.app, probe
    ) as process:
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
        assert await health(probe, settings) != 0


@pytest.mark.parametrize("variable", REQUIRED)
def test_compose_asks_for_what_has_no_safe_default(variable: str) -> None:
    """Without the origins or the aggregator's key, Compose starts nothing and says so."""
    with pytest.raises(MissingVariableError, match=variable):
        read_compose_file(COMPOSE_FILE, {**VARIABLES, variable: ""})


@pytest.mark.parametrize(
    ("name", "variable", "value"),
    [
        *((name, variable, value) for name in CLIENTS for variable, value in TOKENS.items()),
        (
            "websocket_service",
            "INTERNAL_API_KEY",
            "another-key-of-the-tests-with-more-than-32-bytes",
        ),
        ("websocket_service", "WEBSOCKET_PROXY_HEADER", "Forwarded"),
        ("websocket_service", "WEBSOCKET_TRUSTED_PROXIES", '["10.0.0.0/8"]'),
        ("api_gateway_service", "API_GATEWAY_RESULT_AGGREGATOR_URL", "https://results.example.org"),
    ],
)
@pytest.mark.usefixtures("away")
def test_what_compose_passes_on_may_be_left_out(
    compose: ComposeFile, monkeypatch: pytest.MonkeyPatch, name: str, variable: str, value: str
) -> None:
    """A variable reaches the service; one that nobody has set leaves the service's own default."""
    passed = read_compose_file(COMPOSE_FILE, {**VARIABLES, variable: value})
    assert passed.services[name].environment[variable] == value

    settings = CLIENTS[name]
    field = variables(settings)[variable]
    monkeypatch.delenv(variable, raising=False)
    default = settings().model_dump()[field]
    assert compose.services[name].environment[variable] == ""
    monkeypatch.setenv(variable, "")
    assert settings().model_dump()[field] == default
    assert LOADERS[name]().model_dump()[field] == default


@pytest.mark.parametrize("name", CLIENTS)
@pytest.mark.parametrize(("given", "named"), [({}, ["JWT_SECRET_KEY"]), (KEY_SERVER, [])])
@pytest.mark.usefixtures("away")
def test_compose_wants_some_key(
    monkeypatch: pytest.MonkeyPatch, name: str, given: dict[str, str], named: list[str]
) -> None:
    """A key server will do instead of a secret; without either the service names the variable."""
    passed = read_compose_file(COMPOSE_FILE, {**REQUIRED, **given})
    for variable, value in environment(passed.services[name]).items():
        monkeypatch.setenv(variable, value)
    problems = CLIENTS[name]().problems()
    assert [problem.split()[0] for problem in problems] == named


def test_readme_has_each_variable(compose: ComposeFile) -> None:
    """The table of the README has exactly the variables that the Compose file takes."""
    taken = set(re.findall(r"\$\{(\w+)", COMPOSE_FILE.read_text(encoding="utf-8")))
    rows = [
        line.split("|")[1]
        for line in README.read_text(encoding="utf-8").splitlines()
        if line.startswith("| `")
    ]
    assert set(re.findall(r"`([A-Z_]+)`", "".join(rows))) == taken
    published = {variable for variable in taken if variable.endswith("_PUBLISHED_PORT")}
    passed = {name for service in compose.services.values() for name in service.environment}
    assert taken - published <= passed


@pytest.mark.parametrize(
    ("line", "broken"),
    [
        ("restart: unless-stopped", "restart: no"),
        ("mem_limit: 1g", "mem_limit: plenty"),
        ("condition: service_healthy", "condition: service_happy"),
        ("networks: [backplane]", "networks: [backbone]"),
        ("read_only: true", "readonly: true"),
        ("stop_grace_period: 30s", "stop_grace_period: 30"),
        ("pull_policy: never", "pull_policy: seldom"),
        ("kafka-data:/var", "kafka-dates:/var"),
        ("x-tokens:", "y-tokens:"),
    ],
)
def test_a_compose_file_that_compose_would_refuse_is_noticed(
    tmp_path: Path, line: str, broken: str
) -> None:
    """A misspelt key, a wrong value or a dangling name in the Compose file does not go unseen."""
    text = COMPOSE_FILE.read_text(encoding="utf-8")
    assert line in text
    changed = tmp_path / "compose.yml"
    changed.write_text(text.replace(line, broken), encoding="utf-8")
    with pytest.raises(ValidationError):
        read_compose_file(changed, VARIABLES)


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.name)
def test_compose_builds_this_dockerfile_from_the_repository(
    compose: ComposeFile, image: ServiceImage
) -> None:
    """Compose builds the image from the Dockerfile and the context that it was written for."""
    build = compose.services[image.name].build
    assert build is not None
    context = COMPOSE_FILE.parent / build.context
    assert context.resolve() == REPO
    assert (context / build.dockerfile).resolve() == image.dockerfile


def test_each_image_is_built_once(compose: ComposeFile) -> None:
    """No two builds write one tag at the same time, and what is built here is not looked for."""
    built = [service.image for service in compose.services.values() if service.build]
    assert len(built) == len(set(built)) == len(IMAGES)
    reusing = [s for s in compose.services.values() if s.image in built and not s.build]
    assert {service.pull_policy for service in reusing} == {"never"}


@pytest.mark.parametrize("name", CONTAINERS)
def test_compose_sets_only_settings_that_exist(compose: ComposeFile, name: str) -> None:
    """Each variable that Compose sets is one that the service reads."""
    known = set(variables(CONTAINERS[name].settings))
    assert set(compose.services[name].environment) <= known


@pytest.mark.parametrize("name", CLIENTS)
@pytest.mark.usefixtures("away")
def test_compose_settings_suit_production(
    compose: ComposeFile, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """With the variables that it asks for, the settings that Compose passes have no problem."""
    for variable, value in environment(compose.services[name]).items():
        monkeypatch.setenv(variable, value)
    settings = CLIENTS[name]()
    assert settings.is_production
    assert settings.problems() == []


def test_compose_joins_the_services(compose: ComposeFile) -> None:
    """All find Redis and Kafka by their names on one network, once these are ready."""
    assert {tuple(service.networks) for service in compose.services.values()} == {("backplane",)}
    settings = {name: environment(compose.services[name]) for name in CONTAINERS}
    redis_url = "redis://redis:6379"
    assert settings["websocket_service"]["REDIS_URL"] == redis_url
    assert settings["websocket_bridge"]["REDIS_URL"] == redis_url
    assert settings["api_gateway_service"]["API_GATEWAY_REDIS_URL"] == redis_url
    advertised = environment(compose.services["kafka"])["KAFKA_ADVERTISED_LISTENERS"]
    address = advertised.removeprefix("PLAINTEXT://")
    assert address == "kafka:9092"
    assert settings["websocket_bridge"]["KAFKA_BOOTSTRAP_SERVERS"] == address
    assert settings["api_gateway_service"]["API_GATEWAY_KAFKA_BOOTSTRAP_SERVERS"] == address

    conditions = {
        name: {needed: found.condition for needed, found in service.depends_on.items()}
        for name, service in compose.services.items()
    }
    needed = {"redis": "service_healthy", "kafka_topics": "service_completed_successfully"}
    assert conditions == {
        "websocket_service": {"redis": "service_healthy"},
        "websocket_bridge": needed,
        "api_gateway_service": needed,
        "kafka_topics": {"kafka": "service_healthy"},
        "kafka": {},
        "redis": {},
    }
    assert all(compose.services[name].healthcheck for name in ("redis", "kafka"))


def test_only_what_takes_clients_is_published(compose: ComposeFile) -> None:
    """From outside, each service can be reached on its own port, and nothing else can."""
    published = {name: [port.target for port in s.ports] for name, s in compose.services.items()}
    ports = {image.name: image.default_port for image in IMAGES}
    assert {name: [port] for name, port in ports.items()} == {
        name: found for name, found in published.items() if found
    }
    for image in IMAGES:
        settings = environment(compose.services[image.name])
        assert settings[image.port_variables[0]] == str(image.default_port)


def test_one_process_reads_the_events(compose: ComposeFile) -> None:
    """The bridge runs in the container of its own, and not in those that take connections too."""
    reads = {
        name
        for name in ("websocket_service", "websocket_bridge")
        if compose.services[name].environment.get("KAFKA_BOOTSTRAP_SERVERS")
    }
    assert reads == {"websocket_bridge"}


@pytest.mark.usefixtures("away")
def test_topics_are_those_that_the_services_use(compose: ComposeFile) -> None:
    """Every topic that the gateway or the bridge writes or reads is made at the start."""
    words = compose.services["kafka_topics"].command
    assert words is not None
    made = set(re.findall(r"--topic (\S+)", words[-1]))
    assert made == {
        topic_name(ProcessingEvent.CLIENT_BATCH_PIPELINE_REQUEST),
        topic_name(ProcessingEvent.TEACHER_NOTIFICATION_REQUESTED),
        WebSocketSettings().KAFKA_DEAD_LETTER_TOPIC,
    }
    kafka = environment(compose.services["kafka"])
    assert kafka["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"


def test_kafka_is_one_node_in_kraft_mode(compose: ComposeFile) -> None:
    """One process is broker and controller, votes for itself, and keeps its data on the volume."""
    service = compose.services["kafka"]
    kafka = environment(service)
    assert kafka["KAFKA_PROCESS_ROLES"] == "broker,controller"
    listeners = dict(listener.split("://", 1) for listener in kafka["KAFKA_LISTENERS"].split(","))
    controller = listeners[kafka["KAFKA_CONTROLLER_LISTENER_NAMES"]]
    assert kafka["KAFKA_CONTROLLER_QUORUM_VOTERS"] == f"{kafka['KAFKA_NODE_ID']}@{controller}"
    assert set(kafka["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(",")) == {
        f"{name}:PLAINTEXT" for name in listeners
    }
    factors = {value for name, value in kafka.items() if name.endswith("REPLICATION_FACTOR")}
    assert factors == {"1"}
    assert [volume.partition(":")[2] for volume in service.volumes] == [kafka["KAFKA_LOG_DIRS"]]
    # The image takes whatever else begins so for a property of the broker.
    assert {name for name in kafka if not name.startswith("KAFKA_")} == {"CLUSTER_ID"}


def test_containers_are_confined(compose: ComposeFile) -> None:
    """A container that was broken into can write to no disk, gain no right and not eat the host."""
    for name, service in compose.services.items():
        # Kafka's image writes its own settings when it starts.
        assert service.read_only is not service.image.startswith(KAFKA_IMAGE)
        assert "no-new-privileges:true" in service.security_opt
        # Redis' image changes its user, for which it needs some.
        assert name == "redis" or service.cap_drop == ["ALL"]
        assert service.mem_limit is not None
        assert service.restart == ("no" if name == "kafka_topics" else "unless-stopped")


def test_connections_have_file_descriptors(compose: ComposeFile) -> None:
    """A full service still has file descriptors left for Redis, logs and health checks."""
    service = compose.services["websocket_service"]
    connections = int(service.environment["WEBSOCKET_MAX_CONNECTIONS"] or 0)
    assert 0 < connections <= service.ulimits["nofile"] / 2


def test_images_are_pinned(compose: ComposeFile) -> None:
    """No image changes under the same file: each names its version."""
    tags = {service.image.partition(":")[2] for service in compose.services.values()}
    assert not tags & {"", "latest"}
    versions = [s.image for s in compose.services.values() if s.image.startswith(KAFKA_IMAGE)]
    assert len(set(versions)) == 1
