from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import socket
from typing import TYPE_CHECKING

import pytest
from redis.asyncio import Redis
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from services.websocket_service.tests.cli.console import SCRIPT, is_running, process_end

if TYPE_CHECKING:
    from pathlib import Path

    from huleedu_service_libs.redis_server import RedisServer
    from services.websocket_service.tests.cli.conftest import Dev
    from services.websocket_service.tests.cli.console import Console


async def redis_pid(url: str) -> int:
    async with Redis.from_url(url) as client:
        return int((await client.info("server"))["process_id"])


async def test_the_printed_lines_are_all_that_a_newcomer_needs(console: Console) -> None:
    """The URL connects, and the printed command brings a notification there."""
    async with console.start("dev", "--port", "0") as dev:
        lines = [await dev.line() for _ in range(11)]
        assert lines[0].startswith("The service is ready on port ")
        assert lines[1].startswith("Redis: redis://127.0.0.1:")
        url = next(line for line in lines if "ws://" in line).strip()
        notify = next(line for line in lines if " notify " in line)
        assert any(" tail --port " in line for line in lines)
        async with connect(url) as tab:
            process = await asyncio.create_subprocess_exec(
                *shlex.split(notify), env=console.environment({}), stdout=asyncio.subprocess.PIPE
            )
            out, _ = await process.communicate()
            assert out.endswith(b", received by 1 process\n")
            async with asyncio.timeout(10):
                received = json.loads(await tab.recv())
        dev.interrupt()
        assert (await dev.ended()).status == 0
    assert received["event"] == "batch_results_ready"


async def test_a_script_gets_one_line_of_json(dev: Dev) -> None:
    """It names everything that a client or a publisher needs."""
    assert dev.url == f"ws://127.0.0.1:{dev.port}/ws?token={dev.token}"
    assert dev.user == "teacher-1"
    assert dev.pid == dev.process.pid
    dev.process.interrupt()
    assert (await dev.process.ended()).out == ""


async def test_ctrl_c_closes_the_sockets_and_leaves_nothing(console: Console, dev: Dev) -> None:
    """The client hears 1012; Redis, the announcement and the process are gone; status 0."""
    redis = await redis_pid(dev.redis_url)
    async with connect(dev.url) as tab:
        assert console.announcements
        dev.process.interrupt()
        with pytest.raises(ConnectionClosed) as closed:
            await tab.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1012
    result = await dev.process.ended()
    assert result.status == 0
    assert "Traceback" not in result.err
    assert not is_running(redis)
    assert console.announcements == []


async def test_few_open_files_are_enough(console: Console) -> None:
    """A newcomer's first line is no warning of limits that only production needs."""
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", 'ulimit -n 1024 && exec "$0" "$@"', SCRIPT, "dev", "--port", "0"),
        env=console.environment({}),
        cwd=console.folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    shown = b""
    async with asyncio.timeout(30):
        while b" tail --port " not in shown:
            line = await process.stdout.readline()
            assert line
            shown += line
    process.send_signal(signal.SIGINT)
    await process.communicate()
    assert b"file descriptors" not in shown


async def test_the_banner_is_the_last_that_a_start_shows(console: Console) -> None:
    """Nothing scrolls it away, until the service is told to stop."""
    process = await asyncio.create_subprocess_exec(
        *(SCRIPT, "dev", "--port", "0"),
        env=console.environment({}),
        cwd=console.folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    async with asyncio.timeout(30):
        while b" tail --port " not in await process.stdout.readline():
            assert not process.stdout.at_eof()
        process.send_signal(signal.SIGINT)
        assert b"draining" in await process.stdout.readline()
        await process.communicate()


@pytest.mark.parametrize("name", ["XDG_RUNTIME_DIR", "TMPDIR"])
async def test_no_folder(console: Console, tmp_path: Path, name: str) -> None:
    """Neither in the runtime folder nor in the temp directory."""
    folder = tmp_path / "t"
    folder.mkdir()
    variables = {"XDG_RUNTIME_DIR": "", name: str(folder)}
    async with console.start("dev", "--port", "0", "--json", **variables) as dev:
        assert await dev.line()
        assert list(folder.glob("websocket-service*"))
        dev.interrupt()
        assert (await dev.ended()).status == 0
    assert list(folder.iterdir()) == []
    await console.run("token", "--user", "u", **variables)
    assert list(folder.iterdir()) == []


async def test_without_its_redis_it_ends(console: Console, dev: Dev) -> None:
    """The client hears 1012 and the person why; the status is 1."""
    async with connect(dev.url) as tab:
        os.kill(await redis_pid(dev.redis_url), signal.SIGKILL)
        with pytest.raises(ConnectionClosed) as closed:
            await tab.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1012
    result = await dev.process.ended()
    assert result.status == 1
    assert result.error_lines[-1] == "Error: the private Redis ended: start dev again"
    assert "Traceback" not in result.err
    assert console.announcements == []


async def test_sigterm_is_as_good_as_ctrl_c(console: Console, dev: Dev) -> None:
    """A process manager stops it as cleanly as a person."""
    redis = await redis_pid(dev.redis_url)
    dev.process.signal(signal.SIGTERM)
    assert (await dev.process.ended()).status == 0
    assert not is_running(redis)
    assert console.announcements == []


async def test_an_impatient_second_ctrl_c_changes_nothing(dev: Dev) -> None:
    """Pressing it again and again while it stops is no failure and shows no traceback."""
    redis = await redis_pid(dev.redis_url)
    async with connect(dev.url):
        for _ in range(5):
            dev.process.interrupt()
        assert "draining" in await dev.process.error_line("draining")
        dev.process.interrupt()
    result = await dev.process.ended()
    assert result.status == 0
    assert "Traceback" not in result.err
    assert not is_running(redis)


async def test_ctrl_c_before_it_is_ready_is_a_clean_stop(console: Console) -> None:
    """While the service is still starting, nothing is left either."""
    async with console.start("dev", "--port", "0") as dev:
        await dev.error_line("service started")
        dev.interrupt()
        result = await dev.ended()
    assert result.status == 0
    assert "Traceback" not in result.err
    assert console.announcements == []


async def test_a_killed_dev_takes_its_redis_along_and_is_not_found_again(
    console: Console, dev: Dev
) -> None:
    """After kill -9 Redis ends by itself, and the announcement left behind is removed."""
    redis = await redis_pid(dev.redis_url)
    dev.process.signal(signal.SIGKILL)
    await process_end(redis)
    assert console.announcements
    result = await console.run("token", "--user", "u")
    assert result.status == 1
    assert "no running `websocket-service dev` found" in result.err
    assert console.announcements == []


async def test_two_run_side_by_side(console: Console, dev: Dev) -> None:
    """Each has its own Redis; commands mean the newest, or the one whose port is given."""
    async with console.start("dev", "--port", "0", "--json") as second:
        newest = json.loads(await second.line())
        assert newest["redis_url"] != dev.redis_url
        notify = ("notify", "--user", "teacher-1", "--event", "e", "--data", "{}", "--json")
        async with connect(dev.url) as tab:
            to_newest = await console.run(*notify)
            to_first = await console.run(*notify, "--port", str(dev.port))
            named = await console.run(*notify[:-1])
            assert f"(dev on port {newest['port']})" in named.out
            assert json.loads(to_newest.out)["receivers"] == 0
            assert json.loads(to_first.out)["receivers"] == 1
            assert json.loads(await tab.recv())["event"] == "e"


async def test_a_busy_port_is_told_before_anything_starts(console: Console) -> None:
    """One line says which port and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        result = await console.run("dev", "--port", str(port))
    assert (result.status, result.out) == (1, "")
    (line,) = result.error_lines
    assert line == (
        f"Error: port {port} is in use: stop what runs there, or choose another with --port"
    )


async def test_a_given_redis_and_secret_are_used(
    console: Console, redis_server: RedisServer
) -> None:
    """REDIS_URL from .env and JWT_SECRET_KEY from the environment come before anything made."""
    (console.folder / ".env").write_text(f"REDIS_URL={redis_server.url}\n")
    secret = "k" * 40
    async with console.start("dev", "--port", "0", "--json", JWT_SECRET_KEY=secret) as dev:
        printed = json.loads(await dev.line())
        assert printed["redis_url"] == redis_server.url
        token = await console.run("token", "--user", "u", JWT_SECRET_KEY=secret)
        url = f"ws://127.0.0.1:{printed['port']}/ws?token={token.out.strip()}"
        async with connect(url) as tab:
            await console.run("notify", "--user", "u", "--event", "e", "--data", "{}")
            assert json.loads(await tab.recv())["event"] == "e"
        dev.interrupt()
        assert (await dev.ended()).status == 0
    assert is_running(redis_server.pid)


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"REDIS_URL": "redis://:hunter2@127.0.0.1:1"}, "start it, or correct REDIS_URL"),
        ({"REDIS_URL": "nonsense"}, "REDIS_URL is 'nonsense': "),
        ({"JWT_ALGORITHM": "RS256"}, "`dev` signs its own tokens"),
        ({"ENVIRONMENT": "production"}, "CORS_ORIGINS is empty"),
        ({"WEBSOCKET_IDLE_TIMEOUT": "soon"}, "WEBSOCKET_IDLE_TIMEOUT is 'soon'"),
        ({"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}, "Set REDIS_URL too"),
    ],
)
async def test_what_keeps_it_from_starting_is_one_line(
    console: Console, variables: dict[str, str], told: str
) -> None:
    """It names the variable and shows no password; nothing is left."""
    result = await console.run("dev", "--port", "0", **variables)
    assert (result.status, result.out) == (1, "")
    (line,) = result.error_lines
    assert told in line
    assert "hunter2" not in line
    assert console.announcements == []


async def test_a_folder_open_to_others_is_not_used(console: Console) -> None:
    """The secret is not written where somebody else could read it."""
    (console.runtime_folder / "websocket-service").mkdir()
    (console.runtime_folder / "websocket-service").chmod(0o777)
    result = await console.run("dev", "--port", "0")
    assert result.status == 1
    (line,) = result.error_lines
    assert "set XDG_RUNTIME_DIR" in line
