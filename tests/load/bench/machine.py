"""Where a run took place."""

import os
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

PACKAGES: Final = (
    *("quart", "hypercorn", "fastapi", "starlette", "uvicorn", "uvloop", "httptools"),
    *("websockets", "redis", "hiredis", "python-socketio", "django", "channels"),
    *("channels-redis", "picows"),
)


@dataclass(frozen=True, slots=True)
class Machine:
    """As far as figures depend on it."""

    cpu: str
    cores: int
    kernel: str
    python: str
    redis: str
    packages: dict[str, str]
    load_average: tuple[float, float, float]
    """Before the run."""

    @classmethod
    def here(cls, redis_binary: Path) -> "Machine":
        """This one, now."""
        return cls(
            cpu=_cpu(),
            cores=os.cpu_count() or 1,
            kernel=platform.release(),
            python=platform.python_version(),
            redis=_redis(redis_binary),
            packages={name: version(name) for name in PACKAGES},
            load_average=os.getloadavg(),
        )


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _redis(binary: Path) -> str:
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    words = said.split()
    return " ".join([words[0], *(word for word in words if word.startswith("v="))])
