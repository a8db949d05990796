"""What services depend on instead of concrete clients."""

from collections.abc import AsyncIterator, Hashable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeAlias
from uuid import UUID

from redis.asyncio.client import Pipeline
from redis.exceptions import RedisError

from common_core.events.envelope import EventEnvelope
from huleedu_service_libs.error_handling import HuleEduError
from huleedu_service_libs.notifications import Notification, NotificationReceipt
from huleedu_service_libs.redis_scripts import Script, ScriptCall

PublishOutcome: TypeAlias = NotificationReceipt | HuleEduError | RedisError
"""What became of one of many: published; refused before anything was sent; or failed on the way to
Redis, and it may have been published."""


class RedisClientProtocol(Protocol):
    """Keys with a lifetime. Every call raises redis-py's own exceptions."""

    async def set_if_not_exists(self, key: str, value: str, ttl_seconds: int | None = None) -> bool:
        """True where the key was free and now holds the value."""
        ...

    async def get(self, key: str) -> str | None:
        """The value, or None where the key does not exist."""
        ...

    async def setex(self, key: str, ttl_seconds: int, value: str) -> bool:
        """Set the value and its lifetime in one step."""
        ...

    async def delete_key(self, key: str) -> int:
        """1 where the key existed, else 0."""
        ...

    async def delete(self, *keys: str) -> int:
        """How many of the keys existed."""
        ...

    async def ping(self) -> bool:
        """True where Redis answers; raises where it does not."""
        ...


class AtomicRedisClientProtocol(RedisClientProtocol, Protocol):
    """All that services do with Redis: keys, transactions, scripts, publish and subscribe."""

    async def create_transaction_pipeline(self, *watch_keys: str) -> Pipeline:
        """A MULTI/EXEC pipeline; with keys to watch it is in immediate mode until `.multi()`."""
        ...

    async def scan_pattern(self, pattern: str) -> list[str]:
        """Every key that matches the glob-style pattern, found without blocking Redis."""
        ...

    async def publish(self, channel: str, message: str | bytes) -> int:
        """How many subscribers Redis handed the message to."""
        ...

    def subscribe(
        self, channel: str, *, mark_gaps: bool = False
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Enter once Redis has acknowledged; iterate over payloads as they were published.

        With `mark_gaps` a `payload.Gap` stands wherever payloads may be missing.
        """
        ...

    def get_user_channel(self, user_id: str) -> str:
        """The channel that carries one user's notifications."""
        ...

    async def publish_user_notification(
        self,
        user_id: str,
        event_type: str,
        data: Mapping[str, Any],
        *,
        durable: bool = True,
        idempotency_key: str | None = None,
        collapse_key: str | None = None,
        expires_in_s: float | None = None,
        correlation_id: str | UUID | None = None,
        source_service: str | None = None,
    ) -> int:
        """Publish to the user's channel; how many processes received it, 0 for a duplicate.

        The parameters are those of `notifications.Notification`. Raises HuleEduError
        (VALIDATION_ERROR) for what can't be published, before anything is sent.
        """
        ...

    async def publish_notification(self, notification: Notification) -> NotificationReceipt:
        """The same with all that is known of it afterwards."""
        ...

    async def publish_notifications(
        self, notifications: Sequence[Notification]
    ) -> list[NotificationReceipt]:
        """Many in one round trip, in their order for each user."""
        ...

    async def publish_each(self, notifications: Sequence[Notification]) -> list[PublishOutcome]:
        """The same with an outcome for each, where one that is refused or fails leaves the others.

        Raises neither HuleEduError nor redis-py's exceptions: they stand among the outcomes.
        """
        ...

    async def publish_command(self) -> str:
        """`PUBLISH`, or `SPUBLISH` where channels belong to shards: what a script has to use."""
        ...

    async def run_script(
        self, script: Script, keys: Sequence[str], args: Sequence[str | bytes | float]
    ) -> Any:
        """Run a script in one round trip, or two where Redis does not have it yet.

        Texts in the reply are bytes.
        """
        ...

    async def run_scripts(self, calls: Sequence[ScriptCall]) -> list[Any]:
        """Run many in one round trip, in order; an error stands in the place of its reply."""
        ...

    def node_of(self, key: str) -> Hashable:
        """The server that has the key, as far as is known: calls for one of them go together."""
        ...

    async def register_script(self, body: str) -> str:
        """Load a Lua script; the SHA-1 to call it by."""
        ...

    async def execute_script(
        self, sha: str, keys: Sequence[str], args: Sequence[str | bytes | float]
    ) -> Any:
        """Run a registered script in one round trip."""
        ...

    async def sadd(self, key: str, *members: str) -> int:
        """How many members were new."""
        ...

    async def spop(self, key: str) -> str | None:
        """A random member, removed; None where the set is empty."""
        ...

    async def scard(self, key: str) -> int:
        """How many members the set has."""
        ...

    async def smembers(self, key: str) -> set[str]:
        """All members."""
        ...

    async def srem(self, key: str, *members: str) -> int:
        """How many members were removed."""
        ...

    async def zadd(self, key: str, mapping: Mapping[str, float]) -> int:
        """How many members were new; the others have a new score."""
        ...

    async def zrem(self, key: str, *members: str) -> int:
        """How many members were removed."""
        ...

    async def hset(self, key: str, field: str, value: str) -> int:
        """1 where the field is new, else 0."""
        ...

    async def hget(self, key: str, field: str) -> str | None:
        """The field's value, or None."""
        ...

    async def hlen(self, key: str) -> int:
        """How many fields the hash has."""
        ...

    async def hgetall(self, key: str) -> dict[str, str]:
        """All fields with their values."""
        ...

    async def hexists(self, key: str, field: str) -> bool:
        """True where the hash has the field."""
        ...

    async def expire(self, key: str, seconds: int) -> bool:
        """False where the key does not exist."""
        ...

    async def ttl(self, key: str) -> int:
        """Seconds to live; -1 without an expiry, -2 without a key."""
        ...

    async def exists(self, *keys: str) -> int:
        """How many of the keys exist."""
        ...

    async def rpush(self, key: str, *values: str) -> int:
        """The list's new length."""
        ...

    async def lpush(self, key: str, *values: str) -> int:
        """The list's new length."""
        ...

    async def lrange(self, key: str, start: int, end: int) -> list[str]:
        """The elements from `start` to `end`, both included."""
        ...

    async def llen(self, key: str) -> int:
        """The list's length."""
        ...

    async def blpop(self, keys: Sequence[str], timeout: float = 0) -> tuple[str, str] | None:  # noqa: ASYNC109 - redis-py's own parameter, carried out by Redis
        """Key and value of the first element to come; None after `timeout` seconds."""
        ...


class KafkaPublisherProtocol(Protocol):
    """What services publish events with."""

    async def publish(
        self,
        topic: str,
        envelope: EventEnvelope[Any],
        key: str | None = None,
        headers: Mapping[str, str | bytes] | None = None,
    ) -> None:
        """Return once all in-sync replicas have the event; those of one key keep their order.

        The current span's trace context goes into the metadata of what is written, unless there
        is a `traceparent` already. Raises aiokafka's KafkaError, and then the event may be
        written even so.
        """
        ...
