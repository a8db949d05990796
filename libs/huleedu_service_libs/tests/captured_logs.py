"""What structlog is told during a test; a conftest offers it to the tests beside it."""

from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs


@pytest.fixture
def logs() -> Iterator[list[Any]]:
    # Another test may have left structlog configured: start from its defaults, and put that back.
    was_configured, configuration = structlog.is_configured(), structlog.get_config()
    structlog.reset_defaults()
    with capture_logs() as captured:
        yield captured
    if was_configured:
        structlog.configure(**configuration)
