"""The servers that tests run against."""

import os
from pathlib import Path

import pytest

from huleedu_service_libs.redis_server import embedded_redis_server, installed_redis_server
from huleedu_service_libs.testing.redis_binaries import packaged_valkey_server

BINARIES = {
    "embedded": embedded_redis_server(),
    "installed": installed_redis_server(),
    "valkey": packaged_valkey_server(),
}
WANTED = [
    name
    for name, binary in BINARIES.items()
    # A developer's machine has those that packages bring; where CI decides, all have to be there.
    if name != "installed" or binary is not None or os.environ.get("CI")
]


@pytest.fixture(scope="session", params=WANTED)
def redis_binary(request: pytest.FixtureRequest) -> Path:
    binary = BINARIES[request.param]
    if binary is None:
        pytest.fail(f"no {request.param} server on this machine")
    return binary
