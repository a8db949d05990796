"""The repository says nothing of the machine that it was written on, and pins what it uses."""

import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic import BaseModel, Field

from tests.service_process import REPO

PINS = REPO / ".pins"
IMAGES = {"service.txt": "websocket_service", "gateway.txt": "api_gateway_service"}
"""What an image installs, and the one service that is in it."""

# Put together here, so that this file does not name them either.
INDEX_HOSTS = [
    f"{name}.{domain}"
    for name, domain in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("npmjs", "org"),
        ("yarnpkg", "com"),
        ("docker", "io"),
        ("ghcr", "io"),
        ("quay", "io"),
    )
]
MACHINE_PATHS = [f"/{folder}/" for folder in ("work", "root", "site-packages")]


class Project(BaseModel):
    """A member's `[project]` table."""

    name: str
    dependencies: list[str] = []
    extras: dict[str, list[str]] = Field(default={}, alias="optional-dependencies")

    def requirements(self) -> list[Requirement]:
        """Those of its extras too."""
        texts = [*self.dependencies, *(text for extra in self.extras.values() for text in extra)]
        return [Requirement(text) for text in texts]


def read_toml(path: Path) -> dict[str, dict[str, object]]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


class Workspace(BaseModel):
    """The root's `[tool.uv.workspace]` table."""

    members: list[str]

    def folders(self) -> Iterator[Path]:
        for pattern in self.members:
            yield from (found.parent for found in REPO.glob(f"{pattern}/pyproject.toml"))


def workspace() -> Workspace:
    tools = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    return Workspace.model_validate(tools["uv"]["workspace"])


def projects() -> list[Project]:
    """The members and the workspace itself."""
    folders = [REPO, *workspace().folders()]
    return [
        Project.model_validate(read_toml(folder / "pyproject.toml")["project"])
        for folder in folders
    ]


def pinned(file: Path) -> list[Requirement]:
    """The lines that are no editable member."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if not line.startswith("-e ")]


def tracked_files() -> list[Path]:
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPO, capture_output=True, text=True, check=True
    )
    files = [REPO / name for name in listing.stdout.split("\0")[:-1]]
    # One that was deleted and not committed yet, or a link to nowhere, says nothing.
    return [file for file in files if file.is_file()]


@pytest.mark.parametrize("text", [*INDEX_HOSTS, *MACHINE_PATHS])
def test_nothing_ties_the_repository_to_a_machine(text: str) -> None:
    """No file names a package index or a folder of somebody's machine."""
    needle = text.encode()
    found = [str(file.relative_to(REPO)) for file in tracked_files() if needle in file.read_bytes()]
    assert found == []


def test_no_lock_file_is_tracked() -> None:
    """The lock file, which names a package index in each line, is not part of the repository."""
    assert [file for file in tracked_files() if file.name == "uv.lock"] == []


@pytest.mark.parametrize("name", ["run.txt", "dev.txt", *IMAGES])
def test_every_pin_is_exact(name: str) -> None:
    """Installing the pins gives each machine the same versions, and ours from this checkout."""
    file = PINS / name
    loose = [str(pin) for pin in pinned(file) if [s.operator for s in pin.specifier] != ["=="]]
    assert loose == []
    assert [str(pin) for pin in pinned(file) if pin.url or "*" in str(pin.specifier)] == []
    lines = file.read_text(encoding="utf-8").splitlines()
    editable = {line.removeprefix("-e ") for line in lines if line.startswith("-e ")}
    members = {f"./{folder.relative_to(REPO)}" for folder in workspace().folders()}
    if name in IMAGES:
        members -= {f"./services/{service}" for service in IMAGES.values()}
        members.add(f"./services/{IMAGES[name]}")
    assert editable == members


def test_every_dependency_is_pinned() -> None:
    """Whatever a member asks for is in the pins, in a version that suits it."""
    ours = {canonicalize_name(project.name) for project in projects()}
    pins = pinned(PINS / "run.txt")
    unpinned = [
        f"{project.name}: {wanted}"
        for project in projects()
        for wanted in project.requirements()
        if canonicalize_name(wanted.name) not in ours
        and not any(
            canonicalize_name(pin.name) == canonicalize_name(wanted.name)
            and all(wanted.specifier.contains(exact.version) for exact in pin.specifier)
            for pin in pins
        )
    ]
    assert unpinned == []


@pytest.mark.parametrize("name", IMAGES)
def test_all_pins_name_the_same_versions(name: str) -> None:
    """An image runs what a newcomer runs, and that is what the tests have seen."""
    image, run, dev = (
        {str(pin.name) + str(pin.specifier) for pin in pinned(PINS / file)}
        for file in (name, "run.txt", "dev.txt")
    )
    assert image <= run <= dev
