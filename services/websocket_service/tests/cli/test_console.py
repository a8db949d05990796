from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from services.websocket_service.tests.cli.console import Console

NOTIFICATION = ("--user", "u", "--event", "e", "--data", "{}")


@pytest.mark.parametrize("option", ["-h", "--help"])
async def test_help_lists_every_command(console: Console, option: str) -> None:
    """A newcomer sees what there is and where to start."""
    result = await console.run(option)
    assert result.status == 0
    for command in ("dev", "serve", "token", "notify", "tail", "history", "check-config"):
        assert f"\n  {command} " in result.out
    assert "Start with `websocket-service dev`" in result.out
    assert "..." not in result.out.partition("Commands:")[2]


async def test_the_version_is_the_package_version(console: Console) -> None:
    """A bug report can name the version."""
    result = await console.run("--version")
    assert (result.status, result.out) == (0, "websocket-service, version 0.1.0\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["token"],
        ["token", "--user", ""],
        ["token", "--user", "u", "--expires-in", "0s"],
        ["notify", "--user", "u", "--event", " ", "--data", "{}"],
        ["notify", *NOTIFICATION, "--transient", "--idempotency-key", "k"],
        ["notify", *NOTIFICATION, "--transient", "--expires-in", "1h"],
        ["notify", *NOTIFICATION, "--expires-in", "60"],
        ["notify", *NOTIFICATION, "--collapse-key", ""],
        ["history"],
        ["history", "--user", "u", "--limit", "0"],
        ["tail", "--since", ""],
        ["tail", "--user", "u", "--token", "t"],
        ["tail", "--token", "two words"],
        ["tail", "--url", "http://127.0.0.1"],
        ["serve", "--workers", "0"],
        ["dev", "--port", "70000"],
        ["serve", "--port", "abc"],
    ],
)
async def test_a_mistake_in_the_command_line_is_one_line(
    console: Console, arguments: list[str]
) -> None:
    """The line says what is wrong and where to read on; the status is 2."""
    result = await console.run(*arguments)
    assert result.status == 2
    (line,) = result.error_lines
    assert line.startswith("Error: ")
    assert "--help`" in line


@pytest.mark.parametrize("arguments", [["--help"], ["token", "--user", "u"]])
def test_light_commands_load_no_server(arguments: list[str]) -> None:
    """A token is there at once: it does not wait for web server and framework to load."""
    program = (
        "import json, sys; from services.websocket_service.cli.commands import websocket_service;"
        "websocket_service(sys.argv[1:], standalone_mode=False);"
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "JWT_SECRET_KEY": "k" * 32},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = json.loads(done.stdout.splitlines()[-1])
    forbidden = ("quart", "hypercorn", "websockets")
    assert not [name for name in loaded if name.partition(".")[0] in forbidden]
