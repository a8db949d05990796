"""The Compose specification, as far as our files use it.

Only the keys that we use are known, with the values that the specification allows. Whoever uses
another key adds it here; until then it counts as a mistake.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

Duration = Annotated[str, Field(pattern=r"^([0-9]+(us|ms|s|m|h))+$")]
ByteSize = Annotated[str, Field(pattern=r"^[0-9]+(b|k|kb|m|mb|g|gb)$")]
NamedVolume = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*:/[^:]+$")]
PortNumber = Annotated[str, Field(pattern=r"^[0-9]{1,5}$")]
Command = str | list[str]

# `$$` is a dollar sign; `:-` gives a default and `:?` a message, for unset and empty variables.
_REFERENCE = re.compile(r"\$(?:\$|\{(?P<name>\w+)(?:(?P<operator>:-|:\?)(?P<operand>[^}]*))?\})")


class MissingVariableError(Exception):
    """Compose would stop with this message."""


class _Section(BaseModel):
    # Strict, because YAML reads an unquoted `no` as false, which Compose refuses too.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Build(_Section):
    context: str
    dockerfile: str


class Dependency(_Section):
    condition: Literal["service_started", "service_healthy", "service_completed_successfully"]


class Healthcheck(_Section):
    test: list[str]
    interval: Duration
    timeout: Duration
    start_period: Duration
    retries: int

    @model_validator(mode="after")
    def _has_a_kind(self) -> Self:
        if self.test[0] not in {"NONE", "CMD", "CMD-SHELL"}:
            raise ValueError(f"a list must begin with CMD or CMD-SHELL, not {self.test[0]!r}")
        return self


class Port(_Section):
    target: int
    published: PortNumber


class Service(_Section):
    image: str
    build: Build | None = None
    cap_drop: list[str] = []
    command: Command | None = None
    depends_on: dict[str, Dependency] = {}
    environment: dict[str, str | int | float | None] = {}
    healthcheck: Healthcheck | None = None
    mem_limit: ByteSize | None = None
    networks: list[str] = []
    ports: list[Port] = []
    pull_policy: Literal["always", "never", "missing", "build"] = "missing"
    read_only: bool = False
    restart: Literal["no", "always", "on-failure", "unless-stopped"] = "no"
    security_opt: list[str] = []
    stop_grace_period: Duration = "10s"
    ulimits: dict[str, int] = {}
    volumes: list[NamedVolume] = []


class Network(_Section):
    name: str


class Volume(_Section):
    name: str


class ComposeFile(_Section):
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    services: dict[Annotated[str, Field(pattern=r"^[a-zA-Z0-9._-]+$")], Service]
    networks: dict[str, Network] = {}
    volumes: dict[str, Volume] = {}

    @model_validator(mode="after")
    def _refers_to_what_there_is(self) -> Self:
        for name, service in self.services.items():
            for kind, used, known in (
                ("service", service.depends_on, self.services),
                ("network", service.networks, self.networks),
                ("volume", [volume.partition(":")[0] for volume in service.volumes], self.volumes),
            ):
                if unknown := set(used) - set(known):
                    raise ValueError(f"{name} names an unknown {kind}: {unknown}")
        return self


def read_compose_file(path: Path, variables: Mapping[str, str]) -> ComposeFile:
    """The file with `variables` filled in, checked.

    Raises MissingVariableError for a required one, ValidationError for what Compose would refuse.
    """
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    # What begins with `x-` is there to be referred to.
    sections = {key: value for key, value in document.items() if not key.startswith("x-")}
    return ComposeFile.model_validate(_interpolate(sections, variables))


def _interpolate(node: Any, variables: Mapping[str, str]) -> Any:
    def value(reference: re.Match[str]) -> str:
        name, operator, operand = reference.group("name", "operator", "operand")
        if name is None:
            return "$"
        if found := variables.get(name):
            return found
        if operator == ":-":
            return str(operand)
        raise MissingVariableError(f"{name}: {operand or 'is not set'}")

    match node:
        case str():
            return _REFERENCE.sub(value, node)
        case dict():
            return {key: _interpolate(child, variables) for key, child in node.items()}
        case list():
            return [_interpolate(child, variables) for child in node]
    return node
