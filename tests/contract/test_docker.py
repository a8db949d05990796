"""What can be known of the image and of the Compose file without an engine."""

import ast
import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import packages_distributions
from pathlib import Path, PurePosixPath

import pytest
from packaging.utils import canonicalize_name
from pydantic import AliasChoices, ValidationError

from huleedu_service_libs.redis_server import RedisServer
from services.websocket_service.config import Settings
from services.websocket_service.effective_settings import load_settings
from tests.contract.compose_file import ComposeFile, MissingVariableError, read_compose_file
from tests.contract.dockerfile import BuildContext, Stage, read_stages
from tests.service_process import REPO, SECRET, ServiceProcess, free_port

DOCKERFILE = REPO / "services/websocket_service/Dockerfile"
README = REPO / "docker/README.md"
COMPOSE_FILE = REPO / "docker/docker-compose.services.yml"
SCRIPTS = Path(sysconfig.get_path("scripts"))
ORIGINS = {"CORS_ORIGINS": '["https://app.example.org"]'}
VARIABLES = {**ORIGINS, "JWT_SECRET_KEY": SECRET}
KEY_SERVER = {"JWT_ALGORITHM": "ES256", "JWT_JWKS_URL": "https://id.example.org/keys"}
START_TIMEOUT_S = 60

IMPORT_EVERYTHING = """
import importlib, pkgutil
import common_core, huleedu_service_libs, services.websocket_service
for package in (common_core, huleedu_service_libs, services.websocket_service):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        print(importlib.import_module(module.name).__file__)
"""


@pytest.fixture(scope="module")
def stages() -> list[Stage]:
    return read_stages(DOCKERFILE)


@pytest.fixture(scope="module")
def image(stages: list[Stage]) -> Stage:
    return stages[-1]


@pytest.fixture(scope="module")
def context() -> BuildContext:
    return BuildContext(REPO, REPO / ".dockerignore")


@pytest.fixture(scope="module")
def compose() -> ComposeFile:
    return read_compose_file(COMPOSE_FILE, VARIABLES)


@pytest.fixture
def image_root(image: Stage, context: BuildContext, tmp_path: Path) -> Path:
    """A folder with what the image copies from the repository: its `/`."""
    context.build(image, tmp_path)
    return tmp_path


def image_environment(image: Stage, image_root: Path) -> dict[str, str]:
    """Where Python looks in the image: its PYTHONPATH, and what the editable installs point to.

    With `python -S`, nothing else: this environment's own editable installs do not count.
    """
    app = image_root / image.environment()["PYTHONPATH"].removeprefix("/")
    members = editable_members(REPO / ".pins/service.txt")
    sources = [app / member / "src" for member in members if (app / member / "src").is_dir()]
    paths = [app, *sources, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    return {"PYTHONPATH": os.pathsep.join(map(str, paths)), "PYTHONDONTWRITEBYTECODE": "1"}


def editable_members(pins: Path) -> list[str]:
    lines = pins.read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("-e ./") for line in lines if line.startswith("-e ./")]


def imported_names(path: Path) -> set[str]:
    """The top-level packages that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


def image_command(image: Stage) -> list[str]:
    """The image's command, run by this environment's interpreter and without its site module."""
    script, *arguments = image.last("CMD").exec_form()
    found = shutil.which(script, path=SCRIPTS)
    assert found is not None, f"no package of .pins/service.txt installs {script}"
    return [sys.executable, "-S", found, *arguments]


async def health(image: Stage, environment: Mapping[str, str]) -> int:
    """The exit status of the image's health check."""
    python, *arguments = image.last("HEALTHCHECK").exec_form()
    assert python == "python"
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, env=environment, stderr=asyncio.subprocess.DEVNULL
    )
    return await process.wait()


@asynccontextmanager
async def running(
    command: list[str], environment: Mapping[str, str], directory: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    """The service from its log line that says that it has started."""
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, cwd=directory, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    log = b""
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            while b"service started" not in log:
                line = await process.stderr.readline()
                assert line, f"ended at its start: {log.decode()}"
                log += line
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def test_dockerfile_has_no_findings() -> None:
    """The Dockerfile follows the practices that hadolint knows."""
    lint = subprocess.run(
        [SCRIPTS / "hadolint", "--failure-threshold", "style", DOCKERFILE],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (lint.returncode, lint.stdout, lint.stderr) == (0, "", "")


def test_base_image_is_a_pinned_tag_that_a_build_can_replace() -> None:
    """Both stages are built on one Python, which a build argument can replace."""
    lines = DOCKERFILE.read_text(encoding="utf-8").splitlines()
    bases = [line.split()[1] for line in lines if line.startswith("FROM ")]
    assert bases == ["${PYTHON_IMAGE}"] * 2
    assert "ARG PYTHON_IMAGE=python:3.11-slim" in lines


def test_what_is_copied_exists_and_reaches_the_builder(
    stages: list[Stage], context: BuildContext
) -> None:
    """Each path that the Dockerfile copies has files, and `.dockerignore` lets them through."""
    sources = {source for stage in stages for copy in stage.copies() for source in copy.sources}
    assert {source for source in sources if not any(context.files(source))} == set()
    assert ".pins/service.txt" in sources


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        (".pins/service.txt", True),
        ("libs/common_core/pyproject.toml", True),
        ("libs/common_core/README.md", True),
        ("libs/common_core/src/common_core/py.typed", True),
        ("services/websocket_service/main.py", True),
        ("services/websocket_service/cli/serve.py", True),
        ("services/websocket_service/Dockerfile", False),
        ("services/websocket_service/.env", False),
        ("services/websocket_service/tests/test_session.py", False),
        ("services/websocket_service/cli/__pycache__/serve.cpython-311.pyc", False),
        ("libs/common_core/tests/test_events.py", False),
        ("libs/notes.txt", False),
        ("tests/conftest.py", False),
        (".env", False),
        (".git/config", False),
        (".venv/bin/python", False),
        ("uv.lock", False),
    ],
)
def test_only_what_the_image_needs_leaves_the_machine(
    context: BuildContext, path: str, *, sent: bool
) -> None:
    """Secrets, history, tests and build leftovers never reach the builder."""
    assert context.sends(PurePosixPath(path)) is sent


def test_image_holds_all_of_the_service_and_no_tests(image_root: Path) -> None:
    """The image has each module of the service and of its libraries, and no test."""
    copied = {path.relative_to(image_root / "app") for path in image_root.rglob("*.py")}
    tracked = subprocess.run(
        ["git", "ls-files", "libs/*/src/*.py", "services/websocket_service/*.py"],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    needed = {Path(path) for path in tracked if "tests" not in Path(path).parts}
    # A file that was deleted but not yet committed is no loss.
    assert {path for path in needed - copied if (REPO / path).exists()} == set()
    assert {path for path in copied if "tests" in path.parts} == set()


def test_image_does_not_run_as_root(image: Stage) -> None:
    """The service runs as a user of its own, by a number that never changes."""
    assert image.last("USER").arguments == "10001:10001"


def test_image_imports_from_its_own_files(image: Stage, image_root: Path) -> None:
    """What the image holds is enough to import each of its modules, main and commands included."""
    environment = {**image_environment(image, image_root), "JWT_SECRET_KEY": SECRET}
    report = subprocess.run(
        [sys.executable, "-P", "-S", "-c", IMPORT_EVERYTHING],
        cwd=image_root / "app",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert report.returncode == 0, report.stderr
    files = {Path(line) for line in report.stdout.splitlines()}
    assert image_root / "app/services/websocket_service/main.py" in files
    assert {file for file in files if not file.is_relative_to(image_root / "app")} == set()


def test_image_installs_what_its_files_import(image_root: Path) -> None:
    """The image needs no package that only developers have."""
    pins = (REPO / ".pins/service.txt").read_text(encoding="utf-8").splitlines()
    ours = {"common_core", "huleedu_service_libs", "services"}
    installed = {line.partition("==")[0] for line in pins if "==" in line}
    owners = packages_distributions()
    missing = {
        f"{path.name}: {name}"
        for path in image_root.rglob("*.py")
        for name in imported_names(path) - sys.stdlib_module_names - ours
        if installed.isdisjoint(map(canonicalize_name, owners.get(name, ())))
    }
    assert missing == set()


def test_command_is_known(image: Stage, image_root: Path) -> None:
    """The image's command and its options exist."""
    shown = subprocess.run(
        [*image_command(image), "--help"],
        cwd=image_root / "app",
        env=image_environment(image, image_root),
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    assert "websocket-service serve" in shown.stdout


async def test_container_starts_is_healthy_and_stops(
    image: Stage, image_root: Path, compose: ComposeFile, redis_server: RedisServer
) -> None:
    """With Compose's settings the image's command starts, is healthy and ends cleanly."""
    environment = {
        **{
            key: str(value)
            for key, value in compose.services["websocket_service"].environment.items()
        },
        "REDIS_URL": redis_server.url,
        "WEBSOCKET_SERVICE_PORT": str(free_port()),
    }
    async with running(
        image_command(image),
        {**image_environment(image, image_root), **environment},
        image_root / "app",
    ) as process:
        assert await health(image, environment) == 0
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
        assert await health(image, environment) != 0


@pytest.mark.parametrize("variable", ["WEBSOCKET_SERVICE_PORT", "WEBSOCKET_PORT"])
async def test_health_check_finds_the_port(
    image: Stage, service: ServiceProcess, variable: str
) -> None:
    """The health check asks the port that the settings name, under either of its names."""
    assert await health(image, {variable: str(service.port)}) == 0


async def test_health_check_fails_where_nobody_listens(image: Stage) -> None:
    """A container whose service does not answer is unhealthy."""
    assert await health(image, {"WEBSOCKET_SERVICE_PORT": str(free_port())}) == 1


def test_health_check_knows_the_default_port(image: Stage) -> None:
    """The health check, the exposed port and the settings agree where no variable is set."""
    default = str(Settings.model_fields["WEBSOCKET_SERVICE_PORT"].default)
    assert image.last("EXPOSE").arguments == default
    assert f"or '{default}'" in image.last("HEALTHCHECK").arguments


def test_compose_asks_for_what_has_no_safe_default() -> None:
    """Without the origins, Compose starts nothing and says that they are missing."""
    with pytest.raises(MissingVariableError, match="CORS_ORIGINS"):
        read_compose_file(COMPOSE_FILE, {**VARIABLES, "CORS_ORIGINS": ""})


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("INTERNAL_API_KEY", "another-key-of-the-tests-with-more-than-32-bytes"),
        ("JWT_ALGORITHM", "HS512"),
        ("JWT_AUDIENCE", "an-audience"),
        ("JWT_ISSUER", "an-issuer"),
        ("JWT_JWKS_URL", "https://id.example.org/keys"),
        ("JWT_LEEWAY_SECONDS", "3"),
        ("JWT_PUBLIC_KEY", "a key"),
        ("JWT_SECRET_KEY_PREVIOUS", "the-last-secret-of-the-tests-with-more-than-32-bytes"),
        ("WEBSOCKET_PROXY_HEADER", "Forwarded"),
        ("WEBSOCKET_TRUSTED_PROXIES", '["10.0.0.0/8"]'),
    ],
)
def test_what_compose_passes_on_may_be_left_out(
    compose: ComposeFile,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    variable: str,
    value: str,
) -> None:
    """A variable reaches the service; one that nobody has set leaves the service's own default."""
    monkeypatch.chdir(tmp_path)
    passed = read_compose_file(COMPOSE_FILE, {**VARIABLES, variable: value})
    assert passed.services["websocket_service"].environment[variable] == value

    monkeypatch.delenv(variable, raising=False)
    default = Settings().model_dump()[variable]
    assert compose.services["websocket_service"].environment[variable] == ""
    monkeypatch.setenv(variable, "")
    assert Settings().model_dump()[variable] == default
    assert load_settings().model_dump()[variable] == default


@pytest.mark.parametrize(("variables", "named"), [({}, ["JWT_SECRET_KEY"]), (KEY_SERVER, [])])
def test_compose_wants_some_key(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    variables: dict[str, str],
    named: list[str],
) -> None:
    """A key server will do instead of a secret; without either the service names the variable."""
    monkeypatch.chdir(tmp_path)
    passed = read_compose_file(COMPOSE_FILE, {**ORIGINS, **variables})
    for name, value in passed.services["websocket_service"].environment.items():
        monkeypatch.setenv(name, str(value))
    assert [problem.split()[0] for problem in Settings().problems()] == named


def test_readme_has_each_variable(compose: ComposeFile) -> None:
    """The table of the README has exactly the variables that the Compose file takes."""
    taken = set(re.findall(r"\$\{(\w+)", COMPOSE_FILE.read_text(encoding="utf-8")))
    rows = [
        line.split("|")[1]
        for line in README.read_text(encoding="utf-8").splitlines()
        if line.startswith("| `")
    ]
    assert set(re.findall(r"`(\w+)`", "".join(rows))) == taken
    assert taken - {"WEBSOCKET_SERVICE_PUBLISHED_PORT"} <= set(
        compose.services["websocket_service"].environment
    )


@pytest.mark.parametrize(
    ("line", "broken"),
    [
        ("restart: unless-stopped", "restart: no"),
        ("mem_limit: 1g", "mem_limit: plenty"),
        ("condition: service_healthy", "condition: service_happy"),
        ("networks: [backplane]", "networks: [backbone]"),
        ("read_only: true", "readonly: true"),
        ("stop_grace_period: 30s", "stop_grace_period: 30"),
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


def test_compose_builds_this_dockerfile_from_the_repository(compose: ComposeFile) -> None:
    """Compose builds the image from the Dockerfile and the context that it was written for."""
    build = compose.services["websocket_service"].build
    assert build is not None
    context = COMPOSE_FILE.parent / build.context
    assert context.resolve() == REPO
    assert (context / build.dockerfile).resolve() == DOCKERFILE


def test_compose_sets_only_settings_that_exist(compose: ComposeFile) -> None:
    """Each variable that Compose sets is one that the service reads."""
    known = set(Settings.model_fields)
    for field in Settings.model_fields.values():
        if isinstance(field.validation_alias, AliasChoices):
            known |= {str(choice) for choice in field.validation_alias.choices}
    assert set(compose.services["websocket_service"].environment) <= known


def test_compose_settings_suit_production(
    compose: ComposeFile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With a secret and the origins given, the settings that Compose passes have no problem."""
    monkeypatch.chdir(tmp_path)  # away from a developer's .env
    for name, value in compose.services["websocket_service"].environment.items():
        monkeypatch.setenv(name, str(value))
    settings = Settings()
    assert settings.is_production
    assert settings.problems() == []


def test_compose_joins_the_two_services(compose: ComposeFile) -> None:
    """The service finds Redis by its name on a shared network, once Redis is healthy."""
    service, redis = compose.services["websocket_service"], compose.services["redis"]
    assert service.environment["REDIS_URL"] == "redis://redis:6379"
    assert set(service.networks) & set(redis.networks)
    assert service.depends_on["redis"].condition == "service_healthy"
    assert redis.healthcheck is not None


def test_only_the_service_is_published(compose: ComposeFile, image: Stage) -> None:
    """From outside, the service can be reached on its own port, and Redis can't be reached."""
    published = {name: [port.target for port in s.ports] for name, s in compose.services.items()}
    port = int(image.last("EXPOSE").arguments)
    assert published == {"websocket_service": [port], "redis": []}
    assert (
        int(compose.services["websocket_service"].environment["WEBSOCKET_SERVICE_PORT"] or 0)
        == port
    )


def test_containers_are_confined(compose: ComposeFile) -> None:
    """A container that was broken into can write to no disk, gain no right and not eat the host."""
    for service in compose.services.values():
        assert service.read_only
        assert "no-new-privileges:true" in service.security_opt
        assert service.mem_limit is not None
        assert service.restart == "unless-stopped"


def test_connections_have_file_descriptors(compose: ComposeFile) -> None:
    """A full service still has file descriptors left for Redis, logs and health checks."""
    service = compose.services["websocket_service"]
    connections = int(service.environment["WEBSOCKET_MAX_CONNECTIONS"] or 0)
    assert 0 < connections <= service.ulimits["nofile"] / 2


def test_images_are_pinned(compose: ComposeFile) -> None:
    """No image changes under the same file: each names its version."""
    tags = {service.image.partition(":")[2] for service in compose.services.values()}
    assert not tags & {"", "latest"}
