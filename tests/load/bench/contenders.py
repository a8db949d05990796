"""The servers that are compared, each as its documentation recommends, in one process."""

import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import socketio
from channels_redis.pubsub import RedisPubSubChannelLayer
from redis.asyncio import Redis

from huleedu_service_libs.redis_client import RedisClient
from tests.load.bench.handshakes import SECRET, Speech
from tests.load.bench.messages import EVENT, padded_data, text_of_size
from tests.load.bench.recording import Publish, Publisher

MESSAGE_BYTES: Final = 250
_PEERS: Final = "tests.load.bench.peers"
_UNLIMITED: Final = "1000000"
# Of what reaches the client, without padding: an object with the fields that the library adds,
# and an event as Socket.IO writes it.
_DURABLE_BYTES: Final = 187
_EVENT_BYTES: Final = 100


@dataclass(frozen=True, slots=True)
class Contender:
    """A server, and how it is spoken to."""

    name: str
    title: str
    """In the chart."""
    command: tuple[str, ...]
    """`{port}` stands for the port."""
    channel: Callable[[str], str]
    """The Redis channel that the server has subscribed once this user's connection is open."""
    publisher: Publisher
    speech: Speech = Speech.PLAIN
    settings: Mapping[str, str] = field(default_factory=dict)
    readiness_path: str | None = None
    """Answers 200 when the server is ready; without one, it is when it listens."""


def _user_channel(user: str) -> str:
    return f"ws:{user}"


@asynccontextmanager
async def _raw_publisher(redis_url: str, size_bytes: int) -> AsyncIterator[Publish]:
    async with Redis.from_url(redis_url) as redis:

        async def publish(user: str) -> None:
            await redis.publish(_user_channel(user), text_of_size(user, size_bytes))

        yield publish


@asynccontextmanager
async def _durable_publisher(redis_url: str, size_bytes: int) -> AsyncIterator[Publish]:
    async with RedisClient(client_id="bench", redis_url=redis_url) as redis:

        async def publish(user: str) -> None:
            data = padded_data(user, size_bytes - _DURABLE_BYTES)
            await redis.publish_user_notification(user, EVENT, {**data})

        yield publish


@asynccontextmanager
async def _room_publisher(redis_url: str, size_bytes: int) -> AsyncIterator[Publish]:
    manager = socketio.AsyncRedisManager(redis_url, write_only=True)

    async def publish(user: str) -> None:
        await manager.emit(EVENT, {**padded_data(user, size_bytes - _EVENT_BYTES)}, room=user)

    yield publish
    await manager.redis.aclose()


@asynccontextmanager
async def _group_publisher(redis_url: str, size_bytes: int) -> AsyncIterator[Publish]:
    layer = RedisPubSubChannelLayer(hosts=[redis_url])

    async def publish(user: str) -> None:
        text = text_of_size(user, size_bytes)
        await layer.group_send(user, {"type": "notify", "text": text})

    yield publish
    await layer.flush()


def _serve(*options: str) -> tuple[str, ...]:
    script = Path(sys.executable).with_name("websocket-service")
    return (str(script), "serve", "--host", "127.0.0.1", "--port", "{port}", *options)


def _uvicorn(application: str) -> tuple[str, ...]:
    return (
        *(sys.executable, "-m", "uvicorn", f"{_PEERS}.{application}:app"),
        *("--host", "127.0.0.1", "--port", "{port}"),
        *("--no-access-log", "--log-level", "warning"),
    )


_SERVICE_SETTINGS: Final = {
    "ENVIRONMENT": "production",
    "CORS_ORIGINS": '["https://app.example.org"]',
    "LOG_LEVEL": "WARNING",
    "WEBSOCKET_MAX_CONNECTIONS_PER_USER": _UNLIMITED,
    "WEBSOCKET_MAX_CONNECTIONS": _UNLIMITED,
    "WEBSOCKET_MAX_HANDSHAKES_PER_SECOND": _UNLIMITED,
    "WEBSOCKET_HANDSHAKE_BURST": _UNLIMITED,
    "WEBSOCKET_ADDRESS_HANDSHAKES_PER_SECOND": _UNLIMITED,
    "WEBSOCKET_ADDRESS_HANDSHAKE_BURST": _UNLIMITED,
}


def service(speech: Speech, *, workers: int = 1) -> Contender:
    """This service; v1 clients get durable notifications."""
    is_v1 = speech is Speech.V1
    name = "service-v1" if is_v1 else "service"
    return Contender(
        name=name if workers == 1 else f"{name}-{workers}-workers",
        title="this service, v1" if is_v1 else "this service",
        command=_serve("--workers", str(workers)),
        channel=_user_channel,
        publisher=_durable_publisher if is_v1 else _raw_publisher,
        speech=speech,
        settings=_SERVICE_SETTINGS,
        readiness_path="/readyz",
    )


NAIVE: Final = Contender(
    name="naive",
    title="Quart, redis-py",
    command=(
        *(sys.executable, "-m", "hypercorn", f"{_PEERS}.quart_pubsub:app"),
        *("--bind", "127.0.0.1:{port}"),
    ),
    channel=_user_channel,
    publisher=_raw_publisher,
)

CONTENDERS: Final[tuple[Contender, ...]] = (
    service(Speech.PLAIN),
    service(Speech.V1),
    NAIVE,
    Contender(
        name="fastapi",
        title="FastAPI, redis-py",
        command=_uvicorn("fastapi_pubsub"),
        channel=_user_channel,
        publisher=_raw_publisher,
    ),
    Contender(
        name="socketio",
        title="python-socketio",
        command=_uvicorn("socketio_rooms"),
        channel=lambda _: "socketio",
        publisher=_room_publisher,
        speech=Speech.SOCKET_IO,
    ),
    Contender(
        name="channels",
        title="Django Channels",
        command=_uvicorn("channels_groups"),
        channel=lambda user: f"asgi__group__{user}",
        publisher=_group_publisher,
    ),
)


def environment(contender: Contender, redis_url: str) -> dict[str, str]:
    """Of the server's process."""
    return {
        **os.environ,
        "REDIS_URL": redis_url,
        "JWT_SECRET_KEY": SECRET,
        **contender.settings,
    }
