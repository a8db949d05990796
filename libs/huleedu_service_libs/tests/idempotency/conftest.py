"""A Redis, and events as a consumer gets them."""

import json
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from aiokafka.structs import ConsumerRecord

from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_server import RedisServer

StartServer = Callable[..., RedisServer]
Record: TypeAlias = ConsumerRecord[bytes, bytes]

EVENT = {
    "event_id": "5d4c5f5e-7c0e-4a37-9d53-6f7a2f2b9a11",
    "event_type": "essay.graded.v1",
    "event_timestamp": "2026-01-01T00:00:00+00:00",
    "source_service": "grading_service",
    "data": {"essay_id": "essay-1", "grade": "B"},
}


def raw(**changes: Any) -> bytes:
    """`EVENT` with some fields changed."""
    return json.dumps({**EVENT, **changes}).encode()


def delivery(value: bytes | None, *, headers: tuple[tuple[str, bytes], ...] = ()) -> Record:
    """A record as aiokafka hands it over."""
    return ConsumerRecord(
        topic="huleedu.essay.graded.v1",
        partition=0,
        offset=7,
        timestamp=1_767_225_600_000,
        timestamp_type=0,
        key=b"essay-1",
        value=value,
        checksum=None,
        serialized_key_size=7,
        serialized_value_size=-1 if value is None else len(value),
        headers=headers,
    )


@pytest.fixture
def start_server(redis_binary: Path) -> StartServer:
    """`RedisServer` with the binary under test filled in."""
    return partial(RedisServer, redis_binary)


@pytest.fixture
async def server(start_server: StartServer) -> AsyncIterator[RedisServer]:
    async with start_server() as running:
        yield running


@pytest.fixture
async def redis(server: RedisServer) -> AsyncIterator[RedisClient]:
    async with RedisClient(client_id="grading_service", redis_url=server.url) as client:
        yield client
