from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from services.websocket_service.tests.cli.console import Console

SECRET = "s3cr3t" * 8


def rows(printed: str) -> dict[str, Any]:
    return {row["name"]: row for row in json.loads(printed)["settings"]}


async def test_each_setting_is_shown_with_its_origin(console: Console) -> None:
    """The environment comes before .env, and that before the default."""
    (console.folder / ".env").write_text("WEBSOCKET_PING_INTERVAL=7\nLOG_LEVEL=DEBUG\n")
    result = await console.run(
        "check-config", JWT_SECRET_KEY=SECRET, WEBSOCKET_PORT="9000", LOG_LEVEL="ERROR"
    )
    assert (result.status, result.err) == (0, "")
    lines = {line.split()[0]: line.split()[1:] for line in result.out.splitlines()}
    assert lines["NAME"] == ["VALUE", "SOURCE"]
    assert lines["WEBSOCKET_PING_INTERVAL"] == ["7.0", ".env"]
    assert lines["LOG_LEVEL"] == ["ERROR", "environment"]
    assert lines["WEBSOCKET_SERVICE_PORT"] == ["9000", "environment", "(WEBSOCKET_PORT)"]
    assert lines["REDIS_CHANNEL_PREFIX"] == ["ws", "default"]


async def test_no_secret_is_shown(console: Console) -> None:
    """Neither the signing key nor the password of Redis appears, as text or as JSON."""
    for arguments in (("check-config",), ("check-config", "--json")):
        result = await console.run(
            *arguments, JWT_SECRET_KEY=SECRET, REDIS_URL="redis://user:hunter2@r:6379/0"
        )
        assert result.status == 0
        assert SECRET not in result.out
        assert "hunter2" not in result.out
        assert "redis://user:********@r:6379/0" in result.out


async def test_a_script_reads_json(console: Console) -> None:
    """Values keep their types; a secret that is not set is null."""
    result = await console.run("check-config", "--json", CORS_ORIGINS='["https://a.example"]')
    assert result.status == 1
    shown = rows(result.out)
    assert shown["CORS_ORIGINS"]["value"] == ["https://a.example"]
    assert shown["CORS_ORIGINS"]["source"] == "environment"
    assert shown["WEBSOCKET_SERVICE_PORT"]["value"] == 8081
    assert shown["JWT_SECRET_KEY"]["value"] is None
    assert json.loads(result.out)["problems"] == [
        "JWT_SECRET_KEY must be set for HS256: without it every client is refused"
    ]


async def test_every_invalid_variable_has_its_line(console: Console) -> None:
    """Each line names the variable, its value and what is allowed; all come at once."""
    result = await console.run(
        "check-config",
        WEBSOCKET_SERVICE_PORT="70000",
        ENVIRONMENT="moon",
        CORS_ORIGINS="https://a.example",
        WEBSOCKET_PING_INTERVAL="-1",
        JWT_SECRET_KEY=SECRET,
    )
    assert result.status == 1
    port, moon, origins, ping = sorted(
        result.error_lines, key=lambda line: ("PING" in line, "CORS" in line, "moon" in line)
    )
    assert "WEBSOCKET_SERVICE_PORT is '70000': " in port
    assert "less than or equal to 65535" in port
    assert "ENVIRONMENT is 'moon': " in moon
    assert "'production'" in moon
    assert "CORS_ORIGINS is 'https://a.example': it must be JSON" in origins
    assert "WEBSOCKET_PING_INTERVAL is '-1': " in ping
    assert SECRET not in result.out + result.err


async def test_what_is_expected_is_said_plainly(console: Console) -> None:
    """Nobody has to know what a parser does."""
    result = await console.run(
        "check-config",
        ENABLE_TRACING="maybe",
        WEBSOCKET_PING_INTERVAL="soon",
        WEBSOCKET_PORT="x",
        JWT_SECRET_KEY=SECRET,
    )
    assert sorted(result.error_lines) == [
        "Error: ENABLE_TRACING is 'maybe': it should be true or false",
        "Error: WEBSOCKET_PING_INTERVAL is 'soon': it should be a number",
        "Error: WEBSOCKET_PORT is 'x': it should be a whole number",
    ]


async def test_production_names_what_is_insecure(console: Console) -> None:
    """A well-known secret and a missing origin list are one line each."""
    result = await console.run("check-config", ENVIRONMENT="production", JWT_SECRET_KEY="secret")
    assert result.status == 1
    assert [line.split()[1] for line in result.error_lines] == ["JWT_SECRET_KEY", "CORS_ORIGINS"]


async def test_an_env_file_that_can_not_be_read_is_told(console: Console) -> None:
    """A file in another encoding is one line, no traceback."""
    (console.folder / ".env").write_bytes(b"\xff\xfe\x00")
    result = await console.run("check-config", JWT_SECRET_KEY=SECRET)
    assert result.status == 1
    assert result.error_lines == ["Error: .env can't be read: it is not UTF-8"]


async def test_a_terminal_shows_defaults_dimmed_unless_the_user_wants_no_colour(
    console: Console,
) -> None:
    """What the user has chosen stands out."""
    coloured = await console.on_terminal("check-config", JWT_SECRET_KEY=SECRET)
    assert "\x1b[2mREDIS_URL" in coloured
    assert "\x1b[2mJWT_SECRET_KEY " not in coloured
    plain = await console.on_terminal("check-config", JWT_SECRET_KEY=SECRET, NO_COLOR="1")
    assert "\x1b" not in plain
