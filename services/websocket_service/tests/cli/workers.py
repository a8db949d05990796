"""A running `websocket-service serve --workers N`, and which of its processes does what."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from services.websocket_service.tests.cli.console import Console, Running

SECRET = "k" * 40
ANSWER_WITHIN_S = 10.0
# In /proc/net/tcp.
ESTABLISHED = "01"


def free_port(host: str = "127.0.0.1") -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


async def close_code(connection: ClientConnection) -> int | None:
    """The code with which the server closes, after whatever it still sends."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            await connection.recv()
    return connection.close_code


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: str
    pid: int
    """The worker that gave it."""


@dataclass(frozen=True, slots=True)
class Served:
    """`token` is valid for one user, who may have many connections."""

    server: Running
    port: int
    token: str

    @property
    def workers(self) -> list[int]:
        """The process ids of those that are there."""
        children = Path(f"/proc/{self.server.pid}/task/{self.server.pid}/children").read_text()
        return [int(child) for child in children.split()]

    async def all_serve(self, count: int) -> None:
        for _ in range(count):
            await self.server.error_line("Running on")

    async def connect(self) -> ClientConnection:
        return await connect(f"ws://127.0.0.1:{self.port}/ws?token={self.token}", proxy=None)

    def worker_of(self, client_port: int) -> int:
        """The worker that has accepted the connection from this port of ours."""
        inodes: set[str] = set()
        # The kernel writes the list piece by piece: a row may be missing, or come twice.
        while not inodes:
            rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
            inodes = {
                row[9]
                for row in rows
                if row[1].endswith(f":{self.port:04X}")
                and row[2].endswith(f":{client_port:04X}")
                and row[3] == ESTABLISHED
            }
        (inode,) = inodes
        (pid,) = [pid for pid in self.workers if f"socket:[{inode}]" in open_files(pid)]
        return pid

    async def get(self, path: str) -> Answer:
        """Ask over a connection of its own."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            async with asyncio.timeout(ANSWER_WITHIN_S):
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = int(head.partition("content-length: ")[2].split()[0])
                body = (await reader.readexactly(length)).decode()
            pid = self.worker_of(writer.get_extra_info("sockname")[1])
            return Answer(int(head.split()[1]), body, pid)
        finally:
            writer.close()
            await writer.wait_closed()

    async def metrics(self) -> dict[str, float]:
        """Each sample by its name with labels."""
        return samples((await self.get("/metrics")).body)

    async def metrics_of_each(self) -> dict[int, dict[str, float]]:
        """The pages that the workers give, by process id."""
        pages: dict[int, dict[str, float]] = {}
        workers = self.workers
        while pages.keys() != {*workers}:
            answer = await self.get("/metrics")
            pages[answer.pid] = samples(answer.body)
        return pages


def open_files(pid: int) -> list[str]:
    return [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()]


def loaded_files(pid: int) -> str:
    """The shared libraries that the process uses, among others."""
    return Path(f"/proc/{pid}/maps").read_text()


def samples(page: str) -> dict[str, float]:
    parts = (line.rpartition(" ") for line in page.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in parts}


@contextlib.asynccontextmanager
async def served(
    console: Console, redis_url: str, *, workers: int = 2, **variables: str
) -> AsyncIterator[Served]:
    """Entered when all of them serve."""
    port = free_port()
    variables = {
        "JWT_SECRET_KEY": SECRET,
        "REDIS_URL": redis_url,
        "WEBSOCKET_SERVICE_PORT": str(port),
        "WEBSOCKET_WORKERS": str(workers),
        "WEBSOCKET_MAX_CONNECTIONS_PER_USER": "1000",
        **variables,
    }
    token = (await console.run("token", "--user", "u", **variables)).out.strip()
    async with console.start("serve", **variables) as server:
        service = Served(server, port, token)
        await service.all_serve(workers)
        yield service
