"""What can be known of our images without an engine."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path, PurePosixPath

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.contract.images import (
    CONTEXT,
    GATEWAY_IMAGE,
    IMAGES,
    SCRIPTS,
    WEBSOCKET_IMAGE,
    ServiceImage,
    UnpackedImage,
    health,
)
from tests.service_process import REPO, SECRET, ServiceProcess, free_port

OURS = {"common_core", "huleedu_service_libs", "services"}

# Of the libraries, what the service imports: the rest may need what only another service has.
IMPORT_EVERYTHING = """
import importlib, json, pkgutil, sys
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    importlib.import_module(module.name)
print(json.dumps({name: module.__file__ for name, module in sys.modules.items()
                  if getattr(module, "__file__", None)}))
"""


@pytest.fixture(scope="module", params=IMAGES, ids=lambda image: image.name)
def image(request: pytest.FixtureRequest) -> ServiceImage:
    assert isinstance(request.param, ServiceImage)
    return request.param


@pytest.fixture(scope="module")
def unpacked(image: ServiceImage, tmp_path_factory: pytest.TempPathFactory) -> UnpackedImage:
    return UnpackedImage(image, tmp_path_factory.mktemp(image.name))


def imported_names(path: Path) -> Iterator[str]:
    """Everything that a file imports, wherever in it; of `from a import b` also `a.b`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files_of(name: str, sources: list[Path]) -> Iterator[Path]:
    """The module of ours with this dotted name, and the packages that it is in."""
    parts = name.split(".")
    for length in range(1, len(parts) + 1):
        inner = Path(*parts[:length])
        for path in (inner.with_suffix(".py"), inner / "__init__.py"):
            yield from (source / path for source in sources if (source / path).is_file())


def test_dockerfile_has_no_findings(image: ServiceImage) -> None:
    """The Dockerfile follows the practices that hadolint knows."""
    lint = subprocess.run(
        [SCRIPTS / "hadolint", "--failure-threshold", "style", image.dockerfile],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (lint.returncode, lint.stdout, lint.stderr) == (0, "", "")


def test_base_image_is_a_pinned_tag_that_a_build_can_replace(image: ServiceImage) -> None:
    """Both stages are built on one Python, which a build argument can replace."""
    lines = image.dockerfile.read_text(encoding="utf-8").splitlines()
    bases = [line.split()[1] for line in lines if line.startswith("FROM ")]
    assert bases == ["${PYTHON_IMAGE}"] * 2
    assert "ARG PYTHON_IMAGE=python:3.11-slim" in lines


def test_what_is_copied_exists_and_reaches_the_builder(image: ServiceImage) -> None:
    """Each path that the Dockerfile copies has files, and `.dockerignore` lets them through."""
    copies = [copy for stage in image.stages() for copy in stage.copies()]
    sources = {source for copy in copies for source in copy.sources}
    assert {source for source in sources if not any(CONTEXT.files(source))} == set()
    assert image.pins in sources


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        (".pins/gateway.txt", True),
        (".pins/service.txt", True),
        (".pins/dev.txt", False),
        ("libs/common_core/pyproject.toml", True),
        ("libs/common_core/README.md", True),
        ("libs/common_core/src/common_core/py.typed", True),
        ("services/websocket_service/main.py", True),
        ("services/websocket_service/cli/serve.py", True),
        ("services/websocket_service/Dockerfile", False),
        ("services/websocket_service/.env", False),
        ("services/websocket_service/tests/test_session.py", False),
        ("services/websocket_service/cli/__pycache__/serve.cpython-311.pyc", False),
        ("services/api_gateway_service/main.py", True),
        ("services/api_gateway_service/Dockerfile", False),
        ("services/api_gateway_service/tests/test_health.py", False),
        ("libs/common_core/tests/test_events.py", False),
        ("libs/notes.txt", False),
        ("tests/conftest.py", False),
        (".env", False),
        (".git/config", False),
        (".venv/bin/python", False),
        ("uv.lock", False),
    ],
)
def test_only_what_an_image_needs_leaves_the_machine(path: str, *, sent: bool) -> None:
    """Secrets, history, tests and build leftovers never reach the builder."""
    assert CONTEXT.sends(PurePosixPath(path)) is sent


def test_image_holds_all_of_its_service_and_nothing_else(
    image: ServiceImage, unpacked: UnpackedImage
) -> None:
    """The image has each module of its service and of the libraries, no other's, and no test."""
    copied = {path.relative_to(unpacked.app) for path in unpacked.app.rglob("*.py")}
    tracked = subprocess.run(
        ["git", "ls-files", "libs/*/src/*.py", f"services/{image.name}/*.py"],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    needed = {Path(path) for path in tracked if "tests" not in Path(path).parts}
    # A file that was deleted but not yet committed is no loss.
    assert {path for path in needed - copied if (REPO / path).exists()} == set()
    assert {path for path in copied if "tests" in path.parts} == set()
    services = {path.parts[1] for path in copied if path.parts[0] == "services"}
    assert services == {image.name}


def test_image_does_not_run_as_root(unpacked: UnpackedImage) -> None:
    """The service runs as a user of its own, by a number that never changes."""
    assert unpacked.stage.last("USER").arguments == "10001:10001"


def test_service_hears_of_its_end(unpacked: UnpackedImage) -> None:
    """Stopping the container sends the service itself the signal that it ends cleanly at."""
    assert unpacked.stage.last("STOPSIGNAL").arguments == "SIGTERM"
    assert unpacked.stage.last("CMD").exec_form()


def test_image_imports_from_its_own_files(image: ServiceImage, unpacked: UnpackedImage) -> None:
    """What the image holds and installs is enough to import each module of its service."""
    report = subprocess.run(
        [sys.executable, "-P", "-S", "-c", IMPORT_EVERYTHING, image.package],
        cwd=unpacked.app,
        env={**unpacked.environment(), "JWT_SECRET_KEY": SECRET},
        capture_output=True,
        text=True,
        check=False,
    )
    assert report.returncode == 0, report.stderr
    files = json.loads(report.stdout)
    assert f"{image.package}.main" in files
    ours = {Path(file) for name, file in files.items() if name.partition(".")[0] in OURS}
    assert {file for file in ours if not file.is_relative_to(unpacked.app)} == set()


def test_image_installs_what_its_files_import(image: ServiceImage, unpacked: UnpackedImage) -> None:
    """Nor does the service import later, in a function, what the image has not installed."""
    lines = (REPO / image.pins).read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("-e ")]
    installed = {canonicalize_name(pin.name) for pin in pins}
    owners = packages_distributions()
    reached = set((unpacked.app / "services").rglob("*.py"))
    unread = list(reached)
    missing = set()
    while unread:
        path = unread.pop()
        for name in imported_names(path):
            top = name.partition(".")[0]
            if top in OURS:
                found = set(files_of(name, unpacked.sources)) - reached
                reached |= found
                unread += found
            elif top not in sys.stdlib_module_names and installed.isdisjoint(
                map(canonicalize_name, owners.get(top, ()))
            ):
                missing.add(f"{path.name}: {top}")
    assert missing == set()


def test_command_is_known(unpacked: UnpackedImage) -> None:
    """The image's command and its options exist."""
    command = unpacked.command()
    shown = subprocess.run(
        [*command, "--help"],
        cwd=unpacked.app,
        env=unpacked.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    options = {word for word in command if word.startswith("--")}
    assert options <= set(re.findall(r"--\w+", shown.stdout))


@pytest.mark.parametrize(
    ("image", "variable"),
    [(image, variable) for image in IMAGES for variable in image.port_variables],
    indirect=["image"],
)
async def test_health_check_finds_the_port(
    unpacked: UnpackedImage, service: ServiceProcess, variable: str
) -> None:
    """The health check asks the port that the settings name, under each of its names."""
    probe = unpacked.stage.last("HEALTHCHECK").exec_form()
    assert await health(probe, {variable: str(service.port)}) == 0


async def test_health_check_fails_where_nobody_listens(
    image: ServiceImage, unpacked: UnpackedImage
) -> None:
    """A container whose service does not answer is unhealthy."""
    probe = unpacked.stage.last("HEALTHCHECK").exec_form()
    assert await health(probe, {image.port_variables[0]: str(free_port())}) == 1


def test_health_check_knows_the_default_port(image: ServiceImage, unpacked: UnpackedImage) -> None:
    """The health check, the exposed port and the settings agree where no variable is set."""
    default = str(image.default_port)
    assert unpacked.stage.last("EXPOSE").arguments == default
    assert f"or '{default}'" in unpacked.stage.last("HEALTHCHECK").arguments


def test_images_differ_in_their_service_alone() -> None:
    """Both images are made in one way: what is learnt of one holds for the other."""
    recipes = []
    for image in (WEBSOCKET_IMAGE, GATEWAY_IMAGE):
        text = image.dockerfile.read_text(encoding="utf-8")
        text, _, _ = text.replace(image.name, "SERVICE").partition("EXPOSE")
        recipes.append(text.replace(image.pins, "PINS"))
    assert recipes[0] == recipes[1]
