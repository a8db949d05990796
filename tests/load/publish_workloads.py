"""Ways to publish many notifications to many users, in turn."""

import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from itertools import cycle, islice
from typing import Any, Final

from redis.asyncio import Redis

from huleedu_service_libs.notification_scripts import PublishScripts
from huleedu_service_libs.notification_settings import HistoryLimits
from huleedu_service_libs.notifications import Notification
from huleedu_service_libs.redis_channels import UserKeys, user_channel
from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_scripts import Script, ScriptCall

USERS: Final = 200
PAYLOAD_BYTES: Final = 250
LIMITS: Final = HistoryLimits()
# What keeps a history of this size by itself, and can be had without a script.
BASELINE: Final = f"XADD MAXLEN ~ {LIMITS.size}"
NOTHING: Final = Script("return 1")

Workload = Callable[[int], Awaitable[object]]
"""Does so many operations."""


def notification(user: int, payload_bytes: int = PAYLOAD_BYTES, **options: Any) -> Notification:
    """One of exactly so many bytes as JSON, without `id` and `prev`."""
    empty = Notification(
        user_id=f"teacher-{user:04}",
        event_type="batch_results_ready",
        data={"batch_id": ""},
        **options,
    )
    return replace(empty, data={"batch_id": "x" * (payload_bytes - len(encoded(empty)))})


def encoded(one: Notification) -> bytes:
    """The object that is published, without `id` and `prev`."""
    return one.encode(service="load", max_bytes=LIMITS.max_payload_bytes)


class Workloads:
    """Each by name; `client` is the library's, `plain` is redis-py's."""

    def __init__(self, client: RedisClient, plain: Redis) -> None:
        self._client = client
        self._plain = plain
        self._scripts = PublishScripts.of(LIMITS, "PUBLISH")
        self._payload = encoded(notification(0))
        self._endless = cycle([notification(user) for user in range(USERS)])

    def one_by_one(self) -> Mapping[str, Workload]:
        """One call per round trip."""
        renewing = self._scripts.renewing.one
        return {
            "PUBLISH": self._publish,
            "XADD without MAXLEN": lambda n: self._xadd(n, is_limited=False),
            BASELINE: self._xadd,
            "EVALSHA of an empty script": lambda n: self._run(n, NOTHING),
            "durable publish": self._durable,
            "durable, expiries due": lambda n: self._run(n, renewing),
            "durable, idempotency key": lambda n: self._durable(n, has_idempotency_key=True),
            "durable, collapse key": lambda n: self._durable(n, collapse_key="progress"),
        }

    def batched(self) -> Mapping[str, Workload]:
        """All operations in one write."""
        durable, renewing = self._scripts.durable, self._scripts.renewing
        return {
            "PUBLISH": self._publish_batch,
            "XADD without MAXLEN": lambda n: self._xadd_batch(n, is_limited=False),
            BASELINE: self._xadd_batch,
            "EVALSHA of an empty script": lambda n: self._run_batch(n, NOTHING),
            "durable publish": self._durable_batch,
            "durable, not joined": lambda n: self._run_batch(n, durable.one),
            "durable, expiries due": lambda n: self._run_batch(n, renewing.one, renewing.joint),
            "durable, idempotency key": lambda n: self._durable_batch(n, has_idempotency_key=True),
            "durable, collapse key": lambda n: self._durable_batch(n, collapse_key="progress"),
        }

    async def fill(self) -> None:
        """Give every stream the size of a history, so that trimming is part of the work."""
        for _ in range(LIMITS.size // 8):
            await self._durable_batch(10 * USERS)
            await self._xadd_batch(10 * USERS)

    def _next(
        self, count: int, *, has_idempotency_key: bool = False, collapse_key: str | None = None
    ) -> Iterator[Notification]:
        for one in islice(self._endless, count):
            key = secrets.token_hex(8) if has_idempotency_key else None
            yield replace(one, idempotency_key=key, collapse_key=collapse_key)

    def _channels(self, count: int) -> Iterator[str]:
        return (user_channel(one.user_id) for one in islice(self._endless, count))

    def _xadds(self, count: int, *, is_limited: bool) -> Iterator[tuple[str | bytes | int, ...]]:
        prefix = "limited" if is_limited else "endless"
        trim = ("MAXLEN", "~", LIMITS.size) if is_limited else ()
        for channel in self._channels(count):
            yield "XADD", f"{prefix}:{{{channel}}}", *trim, "*", "d", self._payload

    def _calls(self, count: int, script: Script, joint: Script | None) -> Iterator[ScriptCall]:
        for one in islice(self._endless, count):
            channel = user_channel(one.user_id)
            keys = UserKeys.of(channel)
            args = encoded(one)[1:], f"-{secrets.randbits(63)}", channel
            yield ScriptCall(script, [keys.last, keys.history], args, joint)

    async def _publish(self, count: int) -> None:
        for channel in self._channels(count):
            await self._client.publish(channel, self._payload)

    async def _publish_batch(self, count: int) -> None:
        pipeline = self._plain.pipeline(transaction=False)
        for channel in self._channels(count):
            pipeline.publish(channel, self._payload)
        await pipeline.execute()

    async def _xadd(self, count: int, *, is_limited: bool = True) -> None:
        for command in self._xadds(count, is_limited=is_limited):
            await self._plain.execute_command(*command)  # type: ignore[no-untyped-call]  # redis-py's

    async def _xadd_batch(self, count: int, *, is_limited: bool = True) -> None:
        pipeline = self._plain.pipeline(transaction=False)
        for command in self._xadds(count, is_limited=is_limited):
            pipeline.execute_command(*command)
        await pipeline.execute()

    async def _run(self, count: int, script: Script) -> None:
        for call in self._calls(count, script, None):
            await self._client.run_script(call.script, call.keys, call.args)

    async def _run_batch(self, count: int, script: Script, joint: Script | None = None) -> None:
        await self._client.run_scripts([*self._calls(count, script, joint)])

    async def _durable(self, count: int, **options: Any) -> None:
        for one in self._next(count, **options):
            await self._client.publish_notification(one)

    async def _durable_batch(self, count: int, **options: Any) -> None:
        await self._client.publish_notifications([*self._next(count, **options)])
