"""Subscribers of a server that is reading its data."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.testing.admin import Admin
from huleedu_service_libs.testing.tcp_proxy import TcpProxy, is_message

if TYPE_CHECKING:
    from huleedu_service_libs.redis_server import RedisServer
    from libs.huleedu_service_libs.tests.redis.conftest import HearAgain, Logged, StartServer

# Redis 6 answers others once in 2 MB of what it reads; that has to be well before the timeout.
KEYS = 80
VALUE_BYTES = 1_000_000
KEY_DELAY_US = 100_000
TIMEOUT_S = 1.0
AT_ONCE = {"rdbcompression": "no", "repl-diskless-sync-delay": "0"}


async def begin_to_load(server: RedisServer, master: RedisServer) -> None:
    """Have the server read what it gets from a new master, which takes it some 8 s."""
    async with Admin(server.port) as admin, Admin(master.port) as of_master:
        for key in range(KEYS):
            await of_master.setrange(f"{key}", VALUE_BYTES - 1, "x")
        await admin.config_set("key-load-delay", KEY_DELAY_US)
        await admin.replicaof("127.0.0.1", master.port)


async def test_deaf_while_loading(
    start_server: StartServer, logged: Logged, hear_again: HearAgain
) -> None:
    """A deaf connection to a server that is reading its data is replaced, and the log says why."""
    is_deaf = False
    async with (
        start_server() as server,
        start_server(options=AT_ONCE) as master,
        TcpProxy(server.port, keep=lambda reply: not (is_deaf and is_message(reply))) as proxy,
        RedisClient(client_id="test", redis_url=proxy.url, timeout_s=TIMEOUT_S) as client,
        client.subscribe("a") as subscription,
    ):
        with logged(f"no subscription connection to 127.0.0.1:{proxy.port}: LOADING") as said:
            is_deaf = True
            await begin_to_load(server, master)
            async with asyncio.timeout(30):
                await said
        is_deaf = False
        assert await hear_again(client, "a", subscription) == b"again"
