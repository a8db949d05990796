"""Redis commands under redis-py's names, typed for a connection that decodes replies to text."""

import asyncio
from collections.abc import Mapping, Sequence

from huleedu_service_libs.redis_cluster import ClusterRedis
from huleedu_service_libs.redis_deadlines import DeadlineRedis

NOT_STARTED = "the Redis client is not started: call start(), or enter it with `async with`"
DEFAULT_TIMEOUT_S = 5.0
# Older servers take less than a millisecond for zero, which means for ever.
SHORTEST_WAIT_S = 0.01


class RedisCommands:
    """The key, set, sorted-set, hash and list commands of `AtomicRedisClientProtocol`.

    redis-py types every reply as text or bytes, awaitable or not; each `str(...)` and `int(...)`
    here pins down which it is with `decode_responses=True`.
    """

    _redis: DeadlineRedis | ClusterRedis | None = None
    _timeout_s: float = DEFAULT_TIMEOUT_S

    @property
    def _commands(self) -> DeadlineRedis | ClusterRedis:
        if self._redis is None:
            raise RuntimeError(NOT_STARTED)
        return self._redis

    async def set_if_not_exists(self, key: str, value: str, ttl_seconds: int | None = None) -> bool:
        return bool(await self._commands.set(key, value, nx=True, ex=ttl_seconds))

    async def get(self, key: str) -> str | None:
        return _text(await self._commands.get(key))

    async def setex(self, key: str, ttl_seconds: int, value: str) -> bool:
        # Redis and redis-py have deprecated the command SETEX in favour of this one.
        return bool(await self._commands.set(key, value, ex=ttl_seconds))

    async def delete_key(self, key: str) -> int:
        return await self._commands.delete(key)

    async def delete(self, *keys: str) -> int:
        return await self._commands.delete(*keys)

    async def ping(self) -> bool:
        return await self._commands.ping()

    async def scan_pattern(self, pattern: str) -> list[str]:
        return list(dict.fromkeys(await self._commands.scan_keys(pattern)))

    async def exists(self, *keys: str) -> int:
        return await self._commands.exists(*keys)

    async def expire(self, key: str, seconds: int) -> bool:
        return await self._commands.expire(key, seconds)

    async def ttl(self, key: str) -> int:
        return await self._commands.ttl(key)

    async def sadd(self, key: str, *members: str) -> int:
        return await self._commands.sadd(key, *members)

    async def spop(self, key: str) -> str | None:
        return _text(await self._commands.spop(key))

    async def scard(self, key: str) -> int:
        return await self._commands.scard(key)

    async def smembers(self, key: str) -> set[str]:
        return {str(member) for member in await self._commands.smembers(key)}

    async def srem(self, key: str, *members: str) -> int:
        return await self._commands.srem(key, *members)

    async def zadd(self, key: str, mapping: Mapping[str, float]) -> int:
        return int(await self._commands.zadd(key, dict(mapping)) or 0)

    async def zrem(self, key: str, *members: str) -> int:
        return await self._commands.zrem(key, *members)

    async def hset(self, key: str, field: str, value: str) -> int:
        return await self._commands.hset(key, field, value)

    async def hget(self, key: str, field: str) -> str | None:
        return _text(await self._commands.hget(key, field))

    async def hlen(self, key: str) -> int:
        return await self._commands.hlen(key)

    async def hgetall(self, key: str) -> dict[str, str]:
        return {str(f): str(v) for f, v in (await self._commands.hgetall(key)).items()}

    async def hexists(self, key: str, field: str) -> bool:
        return await self._commands.hexists(key, field)

    async def rpush(self, key: str, *values: str) -> int:
        return await self._commands.rpush(key, *values)

    async def lpush(self, key: str, *values: str) -> int:
        return await self._commands.lpush(key, *values)

    async def lrange(self, key: str, start: int, end: int) -> list[str]:
        return [str(item) for item in await self._commands.lrange(key, start, end)]

    async def llen(self, key: str) -> int:
        return await self._commands.llen(key)

    async def blpop(self, keys: Sequence[str], timeout: float = 0) -> tuple[str, str] | None:  # noqa: ASYNC109 - Redis carries it out
        # Redis must come back well before the client's own timeout, or a wait that outlasts it
        # would look like a hung server; and a hung server must not look like a long wait.
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + timeout if timeout else float("inf")
        while True:
            remaining_s = max(SHORTEST_WAIT_S, ends_at - loop.time())
            popped = await self._commands.blpop(list(keys), min(self._timeout_s / 2, remaining_s))
            if popped is not None:
                return str(popped[0]), str(popped[1])
            if loop.time() >= ends_at:
                return None


def _text(reply: object) -> str | None:
    return None if reply is None else str(reply)
