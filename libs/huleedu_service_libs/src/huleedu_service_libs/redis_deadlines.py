"""redis-py with one deadline for a whole call instead of one for each step of it.

redis-py bounds waiting for a pooled connection, opening it, each reply of its handshake, sending
and reading, each by itself: together several times the timeout. Here the call is bounded, and
`socket_timeout` has to be None: the `asyncio.wait_for` that it makes redis-py use costs a task
for each command and, in Python 3.11, can swallow the cancellation that ends the call.
"""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import TimeoutError as RedisTimeoutError

T = TypeVar("T")


async def _within(timeout_s: float, command: object, call: Coroutine[Any, Any, T]) -> T:
    try:
        async with asyncio.timeout(timeout_s):
            return await call
    except TimeoutError:
        raise RedisTimeoutError(f"Redis did not answer {command} within {timeout_s:g} s") from None


class DeadlineRedis(Redis):
    """Owns `pool`; each command raises redis-py's `TimeoutError` after `timeout_s` seconds."""

    def __init__(self, pool: BlockingConnectionPool, timeout_s: float) -> None:
        super().__init__(connection_pool=pool)
        self.auto_close_connection_pool = True
        self._timeout_s = timeout_s

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        call = super().execute_command(*args, **options)  # type: ignore[no-untyped-call]  # redis-py's
        return await _within(self._timeout_s, args[0], call)

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:  # noqa: FBT001, FBT002 - redis-py's signature
        pipeline = DeadlinePipeline(
            self.connection_pool, self.response_callbacks, transaction, shard_hint
        )
        pipeline.timeout_s = self._timeout_s
        return pipeline


class DeadlinePipeline(Pipeline):
    """The same for a pipeline: its WATCH, each immediate command, and its execution as a whole."""

    timeout_s: float

    async def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        call = super().immediate_execute_command(*args, **options)  # type: ignore[no-untyped-call]  # redis-py's
        return await _within(self.timeout_s, args[0], call)

    async def execute(self, raise_on_error: bool = True) -> list[Any]:  # noqa: FBT001, FBT002 - redis-py's signature
        return await _within(self.timeout_s, "EXEC", super().execute(raise_on_error))

    async def reset(self) -> Any:
        # Also the way out of `async with`: a Redis that does not answer UNWATCH has lost this
        # connection by then, and the watch with it, so there is nothing to report.
        with contextlib.suppress(RedisTimeoutError):
            await _within(self.timeout_s, "UNWATCH", super().reset())  # type: ignore[no-untyped-call]  # redis-py's
