"""A client that asks and does not read, until the server can write no more."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

from huleedu_service_libs.testing.polling import until
from tests.http_process import HttpProcess

_RECEIVE_BUFFER_BYTES = 4096


@contextlib.asynccontextmanager
async def unread_answers(server: HttpProcess, requests: bytes) -> AsyncIterator[None]:
    """Entered once the server is stuck with the answers; one connection carries all requests."""
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setblocking(False)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        await loop.sock_connect(client, ("127.0.0.1", server.port))
        await loop.sock_sendall(client, requests)
        await until(partial(has_stuck_writes, server, 1))
        yield


async def has_stuck_writes(server: HttpProcess, count: int) -> bool:
    """Whether so many connections have something to write, and none of it moves any more."""
    before = _unsent(server)
    # As many answers as an event loop still takes when its kernel takes no more: 64 KiB.
    for _ in range(30):
        await server.http("/metrics")
        if len(before) != count or not before.items() <= _unsent(server).items():
            return False
    return True


def _unsent(server: HttpProcess) -> dict[str, str]:
    """What the kernel still has to send for the server, by the client's address."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {
        row[2]: row[4].partition(":")[0]
        for row in rows
        if int(row[1].partition(":")[2], 16) == server.port and int(row[4].partition(":")[0], 16)
    }
