from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import structlog

RunScript = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run_script() -> RunScript:
    """Run a script in a process of its own and keep what it prints."""

    def run(script: str, **variables: str) -> subprocess.CompletedProcess[str]:
        inherited = {
            k: v
            for k, v in os.environ.items()
            if k not in {"ENVIRONMENT", "LOG_FORMAT", "NO_COLOR"}
        }
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", script],
            env=inherited | variables,
            capture_output=True,
            check=True,
            text=True,
        )

    return run


@pytest.fixture(scope="module")
def restored_logging() -> Iterator[None]:
    """Take back what a configuration within the test process has changed."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    was_configured, configuration = structlog.is_configured(), structlog.get_config()
    yield
    for handler in [h for h in root.handlers if h not in handlers]:
        root.removeHandler(handler)
    root.setLevel(level)
    structlog.reset_defaults()
    if was_configured:
        structlog.configure(**configuration)
