"""The module that an ASGI server imports."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import pytest

from services.websocket_service.tests.cli.console import DEADLINE_S

if TYPE_CHECKING:
    from services.websocket_service.tests.cli.console import Console

IMPORT = ("-c", "import services.websocket_service.main")
SECRET = "k" * 40


async def imported(console: Console, **variables: str) -> tuple[int | None, list[str]]:
    """Exit status, and the lines on stderr."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *IMPORT,
        cwd=console.folder,
        env=console.environment(variables),
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(DEADLINE_S):
        _, err = await process.communicate()
    return process.returncode, err.decode().splitlines()


async def test_sound_settings_are_passed_over_in_silence(console: Console) -> None:
    """There is nothing to tell."""
    assert await imported(console, JWT_SECRET_KEY=SECRET) == (0, [])


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"ENVIRONMENT": "production"}, ["JWT_SECRET_KEY", "CORS_ORIGINS"]),
        (
            {"WEBSOCKET_PORT": "x", "REDIS_URL": "y", "CORS_ORIGINS": "z"},
            ["CORS_ORIGINS", "REDIS_URL", "WEBSOCKET_PORT"],
        ),
    ],
)
async def test_each_problem_that_stops_the_start_is_a_line(
    console: Console, variables: dict[str, str], named: list[str]
) -> None:
    """No traceback is shown, and the status is 1."""
    status, lines = await imported(console, **variables)
    assert status == 1
    assert all(line.startswith("Error: ") for line in lines)
    assert sorted(line.split()[1] for line in lines) == sorted(named)


async def test_outside_of_production_problems_are_warnings(console: Console) -> None:
    """The service starts, and says what is missing."""
    status, (line,) = await imported(console)
    assert status == 0
    assert line.startswith("Warning: JWT_SECRET_KEY must be set")
