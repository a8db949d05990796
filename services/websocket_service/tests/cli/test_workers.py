"""`serve` with several workers, some of which are less lucky than others."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from typing import TYPE_CHECKING

import pytest
from redis.asyncio import Redis

from services.websocket_service.tests.cli.console import process_end
from services.websocket_service.tests.cli.workers import (
    SECRET,
    Served,
    close_code,
    free_port,
    loaded_files,
    served,
)

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

    from huleedu_service_libs.redis_server import RedisServer
    from services.websocket_service.tests.cli.console import Console

OPENED = 'websocket_connections_opened_total{dialect="plain"}'
NOBODY = "redis://127.0.0.1:1"
# In every process: what a library does that gives up.
GIVES_UP = """
import os
import signal

signal.signal(signal.SIGUSR1, lambda *_: os._exit(3))
"""


async def connections(service: Served, count: int) -> list[ClientConnection]:
    """So many, of which each of two workers has some."""
    clients = [await service.connect() for _ in range(count)]
    assert len({worker_of(service, client) for client in clients}) == 2
    return clients


def worker_of(service: Served, client: ClientConnection) -> int:
    return service.worker_of(client.local_address[1])


async def test_connections_are_spread(console: Console, redis_server: RedisServer) -> None:
    """Each worker gets its share of the connections."""
    async with served(console, redis_server.url) as service:
        await connections(service, 60)
        metrics = await service.metrics()
    shares = [metrics[f'websocket_worker_connections{{worker="{n}"}}'] for n in (1, 2)]
    assert sum(shares) == 60
    assert min(shares) >= 10


async def test_metrics_are_those_of_all(console: Console, redis_server: RedisServer) -> None:
    """Whichever worker is asked says what all of them do together."""
    async with served(console, redis_server.url) as service:
        clients = await connections(service, 20)
        async with Redis(port=redis_server.port) as redis:
            await redis.publish("ws:u", '{"event":"e","data":{}}')
        for client in clients:
            await client.recv()
        for page in (await service.metrics_of_each()).values():
            assert page["websocket_connections"] == 20
            assert page[OPENED] == 20
            assert page["websocket_deliveries_total"] == 20
            assert page["websocket_publish_to_write_seconds_count"] == 20
            assert page['websocket_workers{state="serving"}'] == 2
            assert page["websocket_redis_hears"] == 1
        assert '"total_connections":20' in (await service.get("/healthz/websocket")).body


@pytest.mark.parametrize(
    ("end", "ending", "code"),
    [
        (signal.SIGKILL, "signal SIGKILL", 1006),
        (signal.SIGSEGV, "signal SIGSEGV", 1006),
        (signal.SIGUSR1, "status 3", 1006),
        (signal.SIGTERM, "status 0", 1012),
    ],
)
async def test_a_crash_stays_alone(
    console: Console, redis_server: RedisServer, end: signal.Signals, ending: str, code: int
) -> None:
    """The others' clients notice nothing, its own come back, and no count is lost."""
    (console.folder / "sitecustomize.py").write_text(GIVES_UP)
    paths = [str(console.folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    async with served(console, redis_server.url, PYTHONPATH=os.pathsep.join(paths)) as service:
        clients = await connections(service, 20)
        victim = service.workers[0]
        theirs = [client for client in clients if worker_of(service, client) == victim]
        others = [client for client in clients if client not in theirs]
        assert (await service.metrics())[OPENED] == 20

        os.kill(victim, end)
        assert {await close_code(client) for client in theirs} == {code}
        line = await service.server.error_line("worker ended unexpectedly")
        assert f"pid={victim}" in line
        assert ending in line
        await service.all_serve(1)

        for page in (await service.metrics_of_each()).values():
            assert page["websocket_connections"] == len(others)
            assert page[OPENED] == 20
            assert page["websocket_worker_restarts_total"] == 1
            assert page['websocket_workers{state="serving"}'] == 2
        clients = others + await connections(service, 20)
        async with Redis(port=redis_server.port) as redis:
            await redis.publish("ws:u", '{"event":"e","data":{}}')
        for client in clients:
            await client.recv()
        assert (await service.metrics())[OPENED] == 40
        service.server.signal(signal.SIGTERM)
        assert {await close_code(client) for client in clients} == {1012}
        assert (await service.server.ended()).status == 0


async def test_who_crashes_again_and_again_waits_longer(console: Console) -> None:
    """The delay before the next attempt grows, so that nothing spins."""
    async with served(console, NOBODY) as service:
        victim = service.workers[0]
        for delay in ("0.0", "0.5", "1.0"):
            os.kill(victim, signal.SIGKILL)
            line = await service.server.error_line("worker ended unexpectedly")
            assert f"restart_in_s={delay}" in line
            line = await service.server.error_line("worker launched")
            victim = int(line.partition("pid=")[2].split()[0])
            await service.all_serve(1)
        # Also while one of them waits to be started again.
        os.kill(victim, signal.SIGKILL)
        await service.server.error_line("worker ended unexpectedly")
        assert (await service.metrics())['websocket_workers{state="waiting"}'] == 1
        service.server.signal(signal.SIGTERM)
        assert (await service.server.ended()).status == 0


async def test_a_worker_that_can_not_be_launched_now(console: Console) -> None:
    """A machine that is short of something for a while costs no more than that while."""
    async with served(console, NOBODY) as service:
        pid = service.server.pid
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[1]))
        os.kill(service.workers[0], signal.SIGKILL)
        line = await service.server.error_line("worker can't be launched")
        assert "Too many open files" in line
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        await service.all_serve(1)
        assert (await service.metrics())['websocket_workers{state="serving"}'] == 2


async def test_a_hung_worker_does_not_hang_the_metrics(
    console: Console, redis_server: RedisServer
) -> None:
    """It is shown as silent, and what it has counted still counts."""
    async with served(console, redis_server.url) as service:
        await connections(service, 20)
        asked = [await asyncio.open_connection("127.0.0.1", service.port) for _ in range(20)]
        assert (await service.metrics())[OPENED] == 20
        hung, other = service.workers
        os.kill(hung, signal.SIGSTOP)
        reader, writer = next(
            streams
            for streams in asked
            if service.worker_of(streams[1].get_extra_info("sockname")[1]) == other
        )
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: l\r\nConnection: close\r\n\r\n")
        page = (await reader.read()).decode()
        assert 'websocket_workers{state="silent"} 1.0' in page
        assert f"{OPENED} 20.0" in page
        assert "websocket_connections 20.0" not in page
        os.kill(hung, signal.SIGCONT)
        for page_of_one in (await service.metrics_of_each()).values():
            assert page_of_one["websocket_connections"] == 20
        for _, writer in asked:
            writer.close()


async def test_metrics_of_one_worker_are_not_given_for_all(
    console: Console, redis_server: RedisServer
) -> None:
    """While the supervisor hangs there are none, rather than wrong ones; clients are served."""
    async with served(console, redis_server.url) as service:
        client = await service.connect()
        workers = service.workers
        service.server.signal(signal.SIGSTOP)
        for path in ("/metrics", "/healthz/websocket"):
            answer = await service.get(path)
            assert answer.status == 503
            assert "SERVICE_UNAVAILABLE" in answer.body
        async with Redis(port=redis_server.port) as redis:
            await redis.publish("ws:u", "text")
        assert await client.recv() == "text"
        service.server.signal(signal.SIGCONT)
        assert (await service.get("/metrics")).status == 200
        assert service.workers == workers


async def test_nothing_is_left_of_a_killed_service(
    console: Console, redis_server: RedisServer
) -> None:
    """If the supervisor is killed, the workers send their clients away and end by themselves."""
    async with served(console, redis_server.url) as service:
        clients = await connections(service, 20)
        workers = service.workers
        service.server.signal(signal.SIGKILL)
        assert {await close_code(client) for client in clients} == {1012}
        for pid in workers:
            await process_end(pid)


@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.parametrize("second", ["1", "2"])
async def test_the_port_belongs_to_one_service(console: Console, first: int, second: str) -> None:
    """A second service on the port is refused, though workers share it."""
    async with served(console, NOBODY, workers=first) as service:
        result = await console.run(
            *("serve", "--host", "0.0.0.0", "--port", str(service.port), "--workers", second),
            JWT_SECRET_KEY=SECRET,
        )
    assert result.status == 1
    (line,) = result.error_lines
    assert f"port {service.port} is in use" in line


@pytest.mark.parametrize("workers", [1, 2])
async def test_production_runs_on_uvloop(console: Console, workers: int) -> None:
    """In each process that serves clients the faster event loop is loaded."""
    async with served(console, NOBODY, workers=workers) as service:
        serving = service.workers if workers > 1 else [service.server.pid]
        assert len(serving) == workers
        for pid in serving:
            assert "/uvloop/" in loaded_files(pid)


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_service_that_can_not_start_says_why(console: Console, workers: str) -> None:
    """One line, status 1, and no further attempt."""
    result = await console.run(
        *("serve", "--port", "0", "--workers", workers),
        JWT_SECRET_KEY=SECRET,
        REDIS_URL=NOBODY,
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{free_port()}",
        OTEL_BSP_MAX_QUEUE_SIZE="-1",
    )
    assert result.status == 1
    (line,) = [line for line in result.error_lines if line.startswith("Error: ")]
    assert "did not start" in line
    assert "max_queue_size" in line


@pytest.mark.parametrize("workers", ["1", "3"])
async def test_a_service_that_is_stopped_at_once(console: Console, workers: str) -> None:
    """Workers that have hardly begun end in good order with all signals that reach them."""
    async with console.start(
        *("serve", "--port", "0", "--workers", workers),
        JWT_SECRET_KEY=SECRET,
        REDIS_URL=NOBODY,
    ) as server:
        if workers != "1":
            await server.error_line("worker launched")
        else:
            await server.error_line("service started")
        server.interrupt()
        server.signal(signal.SIGTERM)
        result = await server.ended()
    assert result.status == 0
    assert "Traceback" not in result.err
