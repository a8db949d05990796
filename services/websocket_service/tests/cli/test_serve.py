from __future__ import annotations

import asyncio
import json
import signal
import socket
from typing import TYPE_CHECKING

import pytest
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from services.websocket_service.tests.cli.workers import SECRET, close_code, free_port

if TYPE_CHECKING:
    from huleedu_service_libs.redis_server import RedisServer
    from services.websocket_service.tests.cli.console import Console


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
async def test_every_client_is_told_of_the_end(
    console: Console, redis_server: RedisServer, workers: str, ending: signal.Signals
) -> None:
    """With one process or several, all connections close with 1012 and the status is 0."""
    variables = {
        "JWT_SECRET_KEY": SECRET,
        "REDIS_URL": redis_server.url,
        "WEBSOCKET_SERVICE_PORT": str(free_port()),
        "WEBSOCKET_MAX_CONNECTIONS_PER_USER": "100",
    }
    token = (await console.run("token", "--user", "u", **variables)).out.strip()
    url = f"ws://127.0.0.1:{variables['WEBSOCKET_SERVICE_PORT']}/ws?token={token}"
    async with console.start("serve", "--workers", workers, **variables) as server:
        for _ in range(int(workers)):
            await server.error_line("Running on")
        connections = [
            await connect(url, subprotocols=[Subprotocol("huleedu.notify.v1")]) for _ in range(20)
        ]
        for connection in connections:
            assert json.loads(await connection.recv())["type"] == "welcome"
        if ending is signal.SIGINT:
            server.interrupt()
            server.interrupt()
        else:
            server.signal(ending)
        for connection in connections:
            assert await close_code(connection) == 1012
        result = await server.ended()
    assert result.status == 0
    assert "Traceback" not in result.err


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_warning_is_told_once(console: Console, workers: str) -> None:
    """What can be run with nevertheless is one line, with several processes too."""
    async with console.start(
        *("serve", "--port", "0", "--workers", workers), REDIS_URL="redis://127.0.0.1:1"
    ) as server:
        seen: list[str] = []
        while sum("Running on" in line for line in seen) < int(workers):
            seen.append(await server.error_line(""))
        server.signal(signal.SIGTERM)
        seen += (await server.ended()).error_lines
    assert sum(line.startswith("Warning: ") for line in seen) == 1


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_what_is_not_for_production_is_told_once(console: Console, workers: str) -> None:
    """A poor secret, open doors and misspelt variables are a line each; it starts all the same."""
    async with console.start(
        *("serve", "--port", "0", "--workers", workers),
        REDIS_URL="redis://127.0.0.1:1",
        JWT_SECRET_KEY="k",
        WEBSOCKET_MAX_CONECTIONS="5",
    ) as server:
        seen: list[str] = []
        while sum("Running on" in line for line in seen) < int(workers):
            seen.append(await server.error_line(""))
        server.signal(signal.SIGTERM)
        seen += (await server.ended()).error_lines
    told = [line for line in seen if line.startswith(("Warning: ", "Note: "))]
    unknown, secret, origins = told
    assert unknown.startswith("Warning: unknown variable WEBSOCKET_MAX_CONECTIONS")
    assert secret.startswith("Note: production would refuse this: JWT_SECRET_KEY has fewer than")
    assert origins.startswith("Note: production would refuse this: CORS_ORIGINS is empty")


@pytest.mark.parametrize("host", ["::1", "[::1]", "localhost"])
async def test_it_listens_where_it_is_told(
    console: Console, redis_server: RedisServer, host: str
) -> None:
    """IPv6 addresses, with and without brackets, and names will do."""
    variables = {"JWT_SECRET_KEY": SECRET, "REDIS_URL": redis_server.url}
    async with console.start("serve", "--host", host, "--port", "0", **variables) as server:
        line = await server.error_line("Running on http://")
        bound = line.partition("http://")[2].split()[0]
        address, _, port = bound.rpartition(":")
        _, writer = await asyncio.open_connection(address.strip("[]"), int(port))
        writer.close()
        await writer.wait_closed()
        server.signal(signal.SIGTERM)
        assert (await server.ended()).status == 0


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_busy_port_is_one_line(console: Console, workers: str) -> None:
    """It says which port and what to do, with several processes too."""
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as busy:
        port = str(busy.getsockname()[1])
        result = await console.run(
            *("serve", "--host", "127.0.0.1", "--port", port, "--workers", workers),
            JWT_SECRET_KEY=SECRET,
        )
    assert result.status == 1
    (line,) = result.error_lines
    assert f"port {port} is in use" in line
    assert "--port" in line


@pytest.mark.parametrize("host", ["192.0.2.1", "nonsense.invalid", "a..b"])
async def test_an_address_of_another_machine_is_one_line(console: Console, host: str) -> None:
    """It says that --host is to be changed."""
    result = await console.run("serve", "--host", host, "--port", "0", JWT_SECRET_KEY=SECRET)
    assert result.status == 1
    (line,) = result.error_lines
    assert host in line
    assert "--host" in line


async def test_production_does_not_start_with_insecure_settings(console: Console) -> None:
    """Each problem is a line that names its variable."""
    result = await console.run("serve", "--port", "0", ENVIRONMENT="production")
    assert result.status == 1
    assert [line.split()[1] for line in result.error_lines] == ["JWT_SECRET_KEY", "CORS_ORIGINS"]


@pytest.mark.parametrize(
    ("url", "expected"), [("r:6379", "redis://, rediss://"), ("redis://r:port", "a port")]
)
async def test_what_is_no_redis_url_is_one_line(console: Console, url: str, expected: str) -> None:
    """It is told before anything starts, in any environment."""
    result = await console.run("serve", "--port", "0", JWT_SECRET_KEY=SECRET, REDIS_URL=url)
    assert result.status == 1
    (line,) = result.error_lines
    assert line.startswith(f"Error: REDIS_URL is '{url}': ")
    assert f"expected {expected}" in line
