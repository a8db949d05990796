"""The images of our services, and how one runs on this machine without an engine."""

import asyncio
import os
import shutil
import sys
import sysconfig
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic import AliasChoices
from pydantic_settings import BaseSettings

from services.api_gateway_service.config import Settings as GatewaySettings
from services.websocket_service.config import Settings as WebSocketSettings
from tests.contract.dockerfile import BuildContext, Stage, read_stages
from tests.service_process import REPO

CONTEXT = BuildContext(REPO, REPO / ".dockerignore")
SCRIPTS = Path(sysconfig.get_path("scripts"))


@dataclass(frozen=True)
class ServiceImage:
    """What `services/<name>/Dockerfile` makes; of `port_variables` the first that is set counts."""

    name: str
    pins: str
    settings: type[BaseSettings]
    port_variables: tuple[str, ...]

    @property
    def dockerfile(self) -> Path:
        return REPO / "services" / self.name / "Dockerfile"

    @property
    def package(self) -> str:
        return f"services.{self.name}"

    @property
    def default_port(self) -> int:
        """Where the service listens if no variable says otherwise."""
        fields = self.settings.model_fields
        return int(fields[variables(self.settings)[self.port_variables[0]]].default)

    def stages(self) -> list[Stage]:
        """The last is the image."""
        return read_stages(self.dockerfile)


WEBSOCKET_IMAGE = ServiceImage(
    "websocket_service",
    ".pins/service.txt",
    WebSocketSettings,
    ("WEBSOCKET_SERVICE_PORT", "WEBSOCKET_PORT"),
)
GATEWAY_IMAGE = ServiceImage(
    "api_gateway_service", ".pins/gateway.txt", GatewaySettings, ("API_GATEWAY_HTTP_PORT",)
)
IMAGES = (WEBSOCKET_IMAGE, GATEWAY_IMAGE)


def variables(settings: type[BaseSettings]) -> dict[str, str]:
    """Each environment variable that `settings` reads, and the field that it sets."""
    read: dict[str, str] = {}
    for name, field in settings.model_fields.items():
        match field.validation_alias:
            case AliasChoices(choices=choices):
                read |= dict.fromkeys(map(str, choices), name)
            case str(variable):
                read[variable] = name
            case _:
                read[settings.model_config["env_prefix"] + name] = name
    return read


class UnpackedImage:
    """What the image holds, below a folder that stands for its `/`."""

    def __init__(self, image: ServiceImage, folder: Path) -> None:
        self.stage = image.stages()[-1]
        self.app = folder / self.stage.last("WORKDIR").arguments.removeprefix("/")
        CONTEXT.build(self.stage, folder)
        self._packages = folder / "packages"
        members = link_pinned_packages(REPO / image.pins, self._packages)
        sources = [self.app / member / "src" for member in members]
        self.sources = [self.app, *filter(Path.is_dir, sources)]

    def environment(self) -> dict[str, str]:
        """Where Python looks in the image: its PYTHONPATH, and what is installed there.

        With `python -S`, nothing else: what developers have installed does not count.
        """
        assert self.stage.environment()["PYTHONPATH"] == "/app"
        paths = [*self.sources, self._packages]
        return {"PYTHONPATH": os.pathsep.join(map(str, paths)), "PYTHONDONTWRITEBYTECODE": "1"}

    def command(self, words: Sequence[str] | None = None) -> list[str]:
        """`words`, or the image's own command, for this machine's interpreter."""
        script, *arguments = words or self.stage.last("CMD").exec_form()
        found = shutil.which(script, path=SCRIPTS)
        assert found is not None, f"no package of ours installs {script}"
        return [sys.executable, "-S", found, *arguments]


def link_pinned_packages(pins: Path, folder: Path) -> list[str]:
    """Link what is installed here and pinned there into `folder`; the members of ours in `pins`."""
    lines = pins.read_text(encoding="utf-8").splitlines()
    pinned = {
        canonicalize_name(pin.name)
        for pin in map(Requirement, (line for line in lines if not line.startswith("-e ")))
        if pin.marker is None or pin.marker.evaluate()
    }
    owned = defaultdict(list)
    for distribution in distributions():
        for file in distribution.files or ():
            if file.parts[0] != "..":  # scripts
                found = Path(str(distribution.locate_file(file)))
                owned[file.parts[0]].append((canonicalize_name(distribution.name), file, found))
    installed = {owner for files in owned.values() for owner, _, _ in files}
    assert pinned <= installed, f"not installed: {pinned - installed}"
    for top, files in owned.items():
        if {owner for owner, _, _ in files} <= pinned:
            # As a whole, so that Python finds what it has compiled before.
            _, file, found = files[0]
            _link(folder / top, found.parents[len(file.parts) - 1] / top)
        else:
            for owner, file, found in files:
                if owner in pinned:
                    _link(folder / file, found)
    return [line.removeprefix("-e ./") for line in lines if line.startswith("-e ./")]


def _link(link: Path, target: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target)


async def health(probe: Sequence[str], environment: Mapping[str, str]) -> int:
    """The exit status of a health check, which begins with `python`."""
    python, *arguments = probe
    assert python == "python"
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, env=environment, stderr=asyncio.subprocess.DEVNULL
    )
    return await process.wait()
