from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from services.websocket_service.tests.cli.console import Console

SECRET = "a-secret-of-the-tests-with-more-than-32-bytes"
ORIGINS = '["https://app.example.org"]'


def rows(printed: str) -> dict[str, Any]:
    return {row["name"]: row for row in json.loads(printed)["settings"]}


async def test_each_setting_is_shown_with_its_origin(console: Console) -> None:
    """The environment comes before .env, and that before the default."""
    (console.folder / ".env").write_text("WEBSOCKET_PING_INTERVAL=7\nLOG_LEVEL=DEBUG\n")
    result = await console.run(
        "check-config",
        JWT_SECRET_KEY=SECRET,
        CORS_ORIGINS=ORIGINS,
        WEBSOCKET_PORT="9000",
        LOG_LEVEL="ERROR",
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


async def test_what_is_not_for_production_is_a_note(console: Console) -> None:
    """Outside of production it is told, and the status is 0; scripts find it in the JSON."""
    variables = {"JWT_SECRET_KEY": f"{SECRET}\n", "LOG_FORMAT": "yaml"}
    result = await console.run("check-config", **variables)
    assert result.status == 0
    secret, origins, log_format = result.error_lines
    assert secret.startswith("Note: production would refuse this: JWT_SECRET_KEY begins or ends")
    assert origins.startswith("Note: production would refuse this: CORS_ORIGINS is empty")
    assert log_format.startswith("Note: LOG_FORMAT is 'yaml'")

    result = await console.run("check-config", "--json", **variables)
    assert (result.status, result.err) == (0, "")
    shown = json.loads(result.out)
    assert shown["problems"] == []
    assert [f"Note: {note}" for note in shown["notes"]] == [secret, origins, log_format]


async def test_a_misspelt_variable_is_a_problem(console: Console) -> None:
    """A variable with our prefix that sets nothing is named, with the one that was meant."""
    (console.folder / ".env").write_text("websocket_ping_intervall=7\n")
    result = await console.run(
        "check-config",
        JWT_SECRET_KEY=SECRET,
        CORS_ORIGINS=ORIGINS,
        WEBSOCKET_MAX_CONECTIONS="5",
        WEBSOCKET_XYZZY="5",
        WEBSOCKET_PORT="9000",
        WEBSOCKET_SERVICE_PORT_8081_TCP="tcp://10.0.0.1:8081",
        WEBSOCKET_SERVICE_PUBLISHED_PORT="80",
    )
    assert result.status == 1
    assert result.error_lines == [
        "Error: unknown variable WEBSOCKET_MAX_CONECTIONS: did you mean WEBSOCKET_MAX_CONNECTIONS?",
        "Error: unknown variable WEBSOCKET_PING_INTERVALL: did you mean WEBSOCKET_PING_INTERVAL?",
        "Error: unknown variable WEBSOCKET_XYZZY",
    ]


@pytest.mark.parametrize("proxies", ["10.0.0.0/8", '["10.0.0.1/8"]', '["proxy.internal"]'])
async def test_a_network_is_asked_for_with_a_network(console: Console, proxies: str) -> None:
    """Whoever names the proxies wrongly sees how it is done."""
    result = await console.run(
        *("check-config", "--json"), JWT_SECRET_KEY=SECRET, WEBSOCKET_TRUSTED_PROXIES=proxies
    )
    assert result.status == 1
    (problem,) = json.loads(result.out)["problems"]
    assert problem.startswith("WEBSOCKET_TRUSTED_PROXIES")
    assert "10.0.0.0/8" in problem.removeprefix("WEBSOCKET_TRUSTED_PROXIES is '10.0.0.0/8'")


async def test_no_part_of_a_key_server_that_may_be_a_key_is_shown(console: Console) -> None:
    """What stands in the query of its address stays hidden."""
    result = await console.run(
        "check-config",
        JWT_ALGORITHM="ES256",
        JWT_JWKS_URL="https://id.example.org/keys?code=hunter2",
    )
    assert result.status == 0
    assert "https://id.example.org/keys?code=********" in result.out
    assert "hunter2" not in result.out + result.err


async def test_the_bridge_must_not_read_what_it_sets_aside(console: Console) -> None:
    """A dead-letter topic that is the topic of events is refused, with the reason."""
    topic = "huleedu.notification.teacher.requested.v1"
    result = await console.run("check-config", JWT_SECRET_KEY=SECRET, KAFKA_DEAD_LETTER_TOPIC=topic)
    assert result.status == 1
    [line] = result.error_lines
    assert line.startswith(f"Error: KAFKA_DEAD_LETTER_TOPIC is '{topic}': the bridge reads")


async def test_what_kafka_needs_is_told_together(console: Console) -> None:
    """Settings that only make sense together are one line that names what is missing."""
    result = await console.run(
        "check-config",
        JWT_SECRET_KEY=SECRET,
        KAFKA_BOOTSTRAP_SERVERS="kafka:9092",
        KAFKA_SECURITY_PROTOCOL="SASL_SSL",
        KAFKA_SASL_MECHANISM="PLAIN",
        KAFKA_SASL_USERNAME="bridge",
    )
    assert result.status == 1
    assert result.error_lines == ["Error: KAFKA_SASL_PASSWORD is missing, SASL_SSL needs it"]
