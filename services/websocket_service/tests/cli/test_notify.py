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
    """A subscriber of that user receives the event with its data and its id, and is counted."""
    async with (
        RedisClient(client_id="test", redis_url=redis_server.url, channel_prefix="ws") as client,
        client.subscribe(client.get_user_channel("teacher ü")) as messages,
    ):
        result = await console.run(
            *("notify", "--user", "teacher ü", "--event", "batch_results_ready"),
            *("--data", '{"name": "Åsa"}', "--correlation-id", "c-1", "--collapse-key", "k"),
            REDIS_URL=redis_server.url,
        )
        received = json.loads(await anext(messages))
    assert (result.status, result.err) == (0, "")
    assert result.out == f"published as {received['id']}, received by 1 process\n"
    assert received["event"] == "batch_results_ready"
    assert received["data"] == {"name": "Åsa"}
    assert received["correlation_id"] == "c-1"
    assert received["collapse_key"] == "k"


async def test_a_transient_one_has_no_id(console: Console, redis_server: RedisServer) -> None:
    """It is published as it is, and not kept."""
    variables = {"REDIS_URL": redis_server.url}
    async with (
        RedisClient(client_id="test", redis_url=redis_server.url) as client,
        client.subscribe("ws:u") as messages,
    ):
        for_people = await console.run(*TO_ANYBODY, "--data", "{}", "--transient", **variables)
        for_scripts = await console.run(
            *TO_ANYBODY, "--data", "{}", "--transient", "--json", **variables
        )
        received = [json.loads(await anext(messages)) for _ in range(2)]
        kept = await client.history.kept("u", max_entries=10)
    assert for_people.out == "received by 1 process\n"
    assert json.loads(for_scripts.out) == {"id": None, "receivers": 1, "duplicate": False}
    assert received == [{"event": "e", "data": {}}] * 2
    assert kept == []


async def test_an_idempotency_key_publishes_once(
    console: Console, redis_server: RedisServer
) -> None:
    """The second time names the first one's id, and nobody receives it."""
    arguments = (*TO_ANYBODY, "--data", "{}", "--idempotency-key", "job-7")
    first, second, third = [
        await console.run(*arguments, *options, REDIS_URL=redis_server.url)
        for options in (["--json"], ["--json"], [])
    ]
    id_ = json.loads(first.out)["id"]
    assert json.loads(first.out) == {"id": id_, "receivers": 0, "duplicate": False}
    assert json.loads(second.out) == {"id": id_, "receivers": 0, "duplicate": True}
    assert third.out == f"published nothing: this --idempotency-key was used for {id_}\n"
    assert third.status == 0
    async with RedisClient(client_id="test", redis_url=redis_server.url) as client:
        assert len(await client.history.kept("u", max_entries=10)) == 1


async def test_how_much_is_kept_is_that_of_the_settings(
    console: Console, redis_server: RedisServer
) -> None:
    """The variables that all publishers share count here too."""
    for _ in range(3):
        result = await console.run(
            *TO_ANYBODY,
            *("--data", "{}"),
            REDIS_URL=redis_server.url,
            NOTIFICATION_HISTORY_SIZE="2",
        )
        assert result.status == 0
    async with RedisClient(client_id="test", redis_url=redis_server.url) as client:
        assert len(await client.history.kept("u", max_entries=10)) == 2


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--data", json.dumps({"a": "x" * 70_000}), "the limit is 65536"),
        ("--idempotency-key", "k" * 257, "the limit is 256"),
        ("--collapse-key", "k" * 257, "the limit is 256"),
        ("--correlation-id", "k" * 257, "the limit is 256"),
        ("--expires-in", "4000d", "315360000"),
    ],
)
async def test_what_the_library_refuses_is_one_line(
    console: Console, redis_server: RedisServer, option: str, value: str, told: str
) -> None:
    """It names the option and the limit; nothing is published."""
    result = await console.run(
        *TO_ANYBODY, *("--data", "{}"), *(option, value), REDIS_URL=redis_server.url
    )
    assert (result.status, result.out) == (1, "")
    (line,) = result.error_lines
    assert line.startswith(f"Error: correct {option}: ")
    assert told in line
    async with RedisClient(client_id="test", redis_url=redis_server.url) as client:
        assert await client.history.kept("u", max_entries=10) == []


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
        assert json.loads(result.out)["receivers"] == 1


async def test_nobody_there_is_no_failure(console: Console, redis_server: RedisServer) -> None:
    """A user without a connection is told about, and what that means; status 0."""
    arguments = (*TO_ANYBODY, "--data", "{}")
    nobody = "received by 0 processes: the user has no open connection"
    durable = await console.run(*arguments, REDIS_URL=redis_server.url)
    transient = await console.run(*arguments, "--transient", REDIS_URL=redis_server.url)
    assert (durable.status, transient.status) == (0, 0)
    assert durable.out.endswith(f", {nobody}, and gets it when a client resumes\n")
    assert transient.out == f"{nobody}\n"


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
