"""What a builder would make of a Dockerfile and a `.dockerignore`, as far as ours go.

Not understood, because not used: heredocs, variables other than in FROM, wildcards in COPY.
"""

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class Instruction:
    keyword: str
    arguments: str

    def exec_form(self) -> list[str]:
        """The command of a CMD or HEALTHCHECK. Raises ValueError if a shell would run it."""
        command = json.loads(self.arguments[self.arguments.index("[") :])
        return [str(word) for word in command]


@dataclass(frozen=True)
class Copy:
    """From the build context to a path inside the image."""

    sources: tuple[str, ...]
    destination: PurePosixPath


class Stage:
    """From one FROM to the next."""

    def __init__(self, instructions: list[Instruction]) -> None:
        self._instructions = instructions

    def last(self, keyword: str) -> Instruction:
        """The one that counts where a later one replaces an earlier one."""
        return [found for found in self._instructions if found.keyword == keyword][-1]

    def environment(self) -> dict[str, str]:
        pairs = [
            pair.partition("=")[::2]
            for found in self._instructions
            if found.keyword == "ENV"
            for pair in shlex.split(found.arguments)
        ]
        return dict(pairs)

    def copies(self) -> list[Copy]:
        """What comes from the build context; what comes from another stage is left out."""
        found = []
        directory = PurePosixPath("/")
        for instruction in self._instructions:
            if instruction.keyword == "WORKDIR":
                directory /= instruction.arguments
            if instruction.keyword == "COPY" and not instruction.arguments.startswith("--from="):
                *sources, destination = shlex.split(instruction.arguments)
                found.append(Copy(tuple(sources), directory / destination))
        return found


def read_stages(dockerfile: Path) -> list[Stage]:
    """The last is the image."""
    lines = dockerfile.read_text(encoding="utf-8").splitlines()
    code = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    stages: list[list[Instruction]] = []
    for line in code.replace("\\\n", " ").splitlines():
        keyword, _, arguments = line.strip().partition(" ")
        if keyword == "FROM":
            stages.append([])
        if keyword and stages:
            stages[-1].append(Instruction(keyword, arguments.strip()))
    return [Stage(instructions) for instructions in stages]


class BuildContext:
    """The files that the builder gets to see."""

    def __init__(self, root: Path, ignore_file: Path) -> None:
        self._root = root
        lines = ignore_file.read_text(encoding="utf-8").splitlines()
        self._rules = [
            (_compile(line.removeprefix("!")), not line.startswith("!"))
            for line in map(str.strip, lines)
            if line and not line.startswith("#")
        ]

    def sends(self, path: PurePosixPath) -> bool:
        """Whether the last rule that speaks of `path`, or of a folder above it, lets it through."""
        ignored = False
        for pattern, ignores in self._rules:
            if pattern.match(f"{path}/"):
                ignored = ignores
        return not ignored

    def files(self, source: str) -> Iterator[Path]:
        """What `COPY source` would find, relative to the context's root."""
        start = self._root / source
        for path in [start] if start.is_file() else sorted(start.rglob("*")):
            relative = path.relative_to(self._root)
            if path.is_file() and self.sends(PurePosixPath(relative.as_posix())):
                yield relative

    def build(self, stage: Stage, target: Path) -> None:
        """Put what `stage` copies from the context below `target`, as if that were its `/`."""
        for copy in stage.copies():
            for source in copy.sources:
                for file in self.files(source):
                    inside = target / copy.destination.relative_to("/") / file.relative_to(source)
                    inside.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(self._root / file, inside)


def _compile(pattern: str) -> re.Pattern[str]:
    # Left open at the end: a folder's rule holds for all that is in it.
    wildcards = {"**": r"(?:[^/]+/)*"}
    parts = pattern.strip("/").split("/")
    return re.compile("".join(wildcards.get(part) or f"{_name(part)}/" for part in parts))


def _name(part: str) -> str:
    return re.escape(part).replace(r"\*", "[^/]*").replace(r"\?", "[^/]")
