"""What the keys of one user take of Redis' memory."""

from dataclasses import dataclass
from typing import Final

from redis.asyncio import Redis

from huleedu_service_libs.redis_channels import KeyName, UserKeys, user_channel
from huleedu_service_libs.redis_client import RedisClient
from tests.load.publish_workloads import LIMITS, notification

PAYLOADS_BYTES: Final = (250, 1_000, 2_000)
# Between two looks at a history; it is trimmed by 16 publishes or more at a time.
STEP: Final = 3


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one key, as `MEMORY USAGE` tells with all of its elements sampled."""

    key: str
    size_bytes: int
    entries: int | None = None
    """Of a history."""


async def measure_memory(client: RedisClient, admin: Redis) -> list[Memory]:
    """Histories where they are largest, and the small keys."""
    memories = [
        await _largest_history(client, admin, user, payload_bytes)
        for user, payload_bytes in enumerate(PAYLOADS_BYTES)
    ]
    published = notification(0)
    keys = _keys(published.user_id)
    memories.append(Memory("newest id", await _size_bytes(admin, keys.last)))
    await client.publish_user_notification(
        published.user_id, published.event_type, published.data, idempotency_key="0" * 32
    )
    idempotency = keys.idempotency("0" * 32)
    memories.append(Memory("idempotency key of 32 bytes", await _size_bytes(admin, idempotency)))
    await client.history.newest("teacher-9999")
    origin = _keys("teacher-9999").last
    memories.append(
        Memory("origin, all there is of a user without one", await _size_bytes(admin, origin))
    )
    return memories


async def _largest_history(
    client: RedisClient, admin: Redis, user: int, payload_bytes: int
) -> Memory:
    one = notification(user, payload_bytes)
    history = _keys(one.user_id).history
    largest = Memory("", 0)
    for _ in range(2 * LIMITS.size // STEP):
        await client.publish_notifications([one] * STEP)
        size_bytes = await _size_bytes(admin, history)
        if size_bytes > largest.size_bytes:
            name = f"history of {LIMITS.size}, objects of {payload_bytes} bytes"
            largest = Memory(name, size_bytes, int(await admin.xlen(history)))
    return largest


def _keys(user_id: str) -> UserKeys:
    return UserKeys.of(user_channel(user_id))


async def _size_bytes(admin: Redis, key: KeyName) -> int:
    return int(await admin.memory_usage(key, samples=0) or 0)
