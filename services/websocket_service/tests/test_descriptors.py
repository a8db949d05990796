"""Room for connections, as the operating system gives it."""

import subprocess
import sys

import pytest

from services.websocket_service.descriptors import OTHERS

SCRIPT = """
import resource, sys
from services.websocket_service.descriptors import allow_connections
soft, hard, count = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
print(allow_connections(count), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.parametrize(
    ("soft", "hard", "count", "room", "soft_afterwards"),
    [
        (1024, 4096, 500, 500, 1024),
        (1024, 4096, 2000, 2000, 2000 + OTHERS),
        (1024, 4096, 20_000, 4096 - OTHERS, 4096),
        (64, 64, 20_000, 0, 64),
    ],
)
def test_limit(soft: int, hard: int, count: int, room: int, soft_afterwards: int) -> None:
    """The soft limit is raised as far as it has to be and may be, and what is missing is known."""
    script = [sys.executable, "-c", SCRIPT, *map(str, (soft, hard, count))]
    printed = subprocess.run(script, check=True, capture_output=True, text=True).stdout
    assert printed.split() == [str(room), str(soft_afterwards)]
