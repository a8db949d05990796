from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from huleedu_service_libs.redis_server import RedisServer
from services.websocket_service.tests.cli.console import Console, Running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Dev:
    """A running `websocket-service dev --json` and what it printed."""

    process: Running
    url: str
    token: str
    user: str
    redis_url: str
    port: int
    pid: int


@pytest.fixture
def console(tmp_path: Path) -> Console:
    return Console(tmp_path)


@pytest.fixture
async def dev(console: Console) -> AsyncIterator[Dev]:
    async with console.start("dev", "--port", "0", "--json") as process:
        yield Dev(process=process, **json.loads(await process.line()))


@pytest.fixture
async def redis_server() -> AsyncIterator[RedisServer]:
    async with RedisServer() as server:
        yield server
