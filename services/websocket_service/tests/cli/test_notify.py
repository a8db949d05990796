from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from huleedu_service_libs.redis_client import RedisClient

if TYPE_CHECKING:
    from huleedu_service_libs.redis_server import RedisServer
    from services.websocket_service.tests.cli.console import Console

TO_ANYBODY = ("notify", "--user", "u", "--event", "e")


async def test_what_is_published_reaches_the_users_channel(
    console: Console, redis_server: RedisServer
) -> None:
    """A subscriber of that user receives the event with its data, and is counted."""
    async with (
        RedisClient(client_id="test", redis_url=redis_server.url, channel_prefix="ws") as client,
        client.subscribe(client.get_user_channel("teacher ü")) as messages,
    ):
        result = await console.run(
            *("notify", "--user", "teacher ü", "--event", "batch_results_ready"),
            *("--data", '{"name": "Åsa"}'),
            REDIS_URL=redis_server.url,
        )
        assert (result.status, result.out, result.err) == (0, "received by 1 process\n", "")
        assert json.loads(await anext(messages)) == {
            "event": "batch_results_ready",
            "data": {"name": "Åsa"},
        }


async def test_the_channel_prefix_is_that_of_the_settings(
    console: Console, redis_server: RedisServer
) -> None:
    """Publisher and service share the setting."""
    async with (
        RedisClient(client_id="test", redis_url=redis_server.url) as client,
        client.subscribe("other:u"),
    ):
        result = await console.run(
            *TO_ANYBODY,
            *("--data", "{}", "--json"),
            REDIS_URL=redis_server.url,
            REDIS_CHANNEL_PREFIX="other",
        )
        assert json.loads(result.out) == {"receivers": 1}


async def test_nobody_there_is_no_failure(console: Console, redis_server: RedisServer) -> None:
    """A user without a connection is told about, with status 0."""
    result = await console.run(*TO_ANYBODY, "--data", "{}", REDIS_URL=redis_server.url)
    assert result.status == 0
    assert result.out == "received by 0 processes: the user has no open connection\n"


async def test_data_comes_from_stdin_or_a_file(console: Console, redis_server: RedisServer) -> None:
    """Long data need not be quoted for a shell; a byte order mark does no harm."""
    (console.folder / "data.json").write_bytes(b'\xef\xbb\xbf{"from": "file"}')
    async with (
        RedisClient(client_id="test", redis_url=redis_server.url) as client,
        client.subscribe("ws:u") as messages,
    ):
        for data, given in (("-", '{"from":\n "stdin"}'), ("@data.json", None)):
            result = await console.run(
                *TO_ANYBODY, "--data", data, given=given, REDIS_URL=redis_server.url
            )
            assert result.status == 0, result.err
        received = [json.loads(await anext(messages))["data"]["from"] for _ in range(2)]
    assert received == ["stdin", "file"]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ('{"a": }', "Expecting value at line 1 column 7"),
        ("{\n'a': 1}", "at line 2 column 1"),
        ("[1]", "must be a JSON object"),
        ('{"a": NaN}', "NaN"),
        ("[" * 100_000, "nested too deeply"),
        ("@missing.json", "No such file"),
        ("@.", "Is a directory"),
        ("@latin-1.json", "is not UTF-8"),
        ('{"a": ' + "1" * 10_000 + "}", "a number has 10000 digits"),
    ],
)
async def test_data_that_is_no_json_object_is_refused(
    console: Console, data: str, told: str
) -> None:
    """The line says where the mistake is."""
    (console.folder / "latin-1.json").write_bytes(b'{"a": "\xe9"}')
    result = await console.run(*TO_ANYBODY, "--data", data, REDIS_URL="redis://127.0.0.1:1")
    assert result.status == 2
    (line,) = result.error_lines
    assert told in line


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:hunter2@127.0.0.1:1",
        "nonsense://user:hunter2@host",
        "redis://user:hunter2@host:port",
        "redis://:hunter2/a@host",
    ],
)
async def test_a_redis_that_can_not_be_used_is_one_line_without_password(
    console: Console, url: str
) -> None:
    """It says which Redis was meant and what to do."""
    result = await console.run(*TO_ANYBODY, "--data", "{}", REDIS_URL=url)
    assert result.status == 1
    (line,) = result.error_lines
    assert "REDIS_URL" in line
    assert "hunter2" not in line


async def test_without_redis_and_dev_it_says_what_to_do(console: Console) -> None:
    """The line offers both ways."""
    result = await console.run(*TO_ANYBODY, "--data", "{}")
    assert result.status == 1
    (line,) = result.error_lines
    assert "start one, or set REDIS_URL" in line
