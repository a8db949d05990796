"""redis-py with one deadline for a whole call instead of one for each step of it.

redis-py bounds waiting for a pooled connection, opening it, each reply of its handshake, sending
and reading, each by itself: together several times the timeout. Here the call is bounded, and
`socket_timeout` has to be None: the `asyncio.wait_for` that it makes redis-py use costs a task
for each command and, in Python 3.11, can swallow the cancellation that ends the call.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import Pipeline

from huleedu_service_libs.redis_script_calls import AS_BYTES, script_commands
from huleedu_service_libs.redis_scripts import JoinedCalls, ScriptCall

T = TypeVar("T")

KEYS_PER_SCAN: Final = 500
_FAILURES: Final = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ClusterDownError,
    exceptions.ReadOnlyError,
)


@dataclass(frozen=True, slots=True)
class CallRules:
    """What holds for every call: its deadline, and `doubt()` after one that a server failed.

    It fails one by not answering, or by answering as only a server without that role does.
    """

    timeout_s: float
    doubt: Callable[[], None]

    async def run(self, command: object, call: Coroutine[Any, Any, T]) -> T:
        """The call's result; raises redis-py's `TimeoutError` after `timeout_s` seconds."""
        try:
            async with asyncio.timeout(self.timeout_s):
                return await call
        except TimeoutError:
            self.doubt()
            raise exceptions.TimeoutError(
                f"Redis did not answer {command} within {self.timeout_s:g} s"
            ) from None
        except exceptions.RedisError as error:
            self.judge([error])
            raise

    def judge(self, replies: Iterable[object]) -> None:
        """Doubt the server if one of the replies is such an error."""
        if any(map(_is_failure, replies)):
            self.doubt()


def _is_failure(reply: object) -> bool:
    if isinstance(reply, _FAILURES):
        return True
    # Redis 6 wraps what it refuses to a script in an error of its own.
    return isinstance(reply, exceptions.ResponseError) and "READONLY" in str(reply)


def _keep_faith() -> None:
    """For a server that nothing can take the place of."""


class DeadlineRedis(Redis):
    """Owns `pool`; each command raises redis-py's `TimeoutError` after `timeout_s` seconds."""

    def __init__(
        self,
        pool: BlockingConnectionPool,
        timeout_s: float,
        *,
        doubt: Callable[[], None] = _keep_faith,
    ) -> None:
        super().__init__(connection_pool=pool)
        self.auto_close_connection_pool = True
        self._rules = CallRules(timeout_s, doubt)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        call = super().execute_command(*args, **options)  # type: ignore[no-untyped-call]  # redis-py's
        return await self._rules.run(args[0], call)

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:  # noqa: FBT001, FBT002 - redis-py's signature
        pipeline = DeadlinePipeline(
            self.connection_pool, self.response_callbacks, transaction, shard_hint
        )
        pipeline.rules = self._rules
        return pipeline

    async def scan_keys(self, pattern: str) -> list[str]:
        """Matching keys; one may come twice while Redis resizes its table."""
        return [str(key) async for key in self.scan_iter(match=pattern, count=KEYS_PER_SCAN)]

    async def begin_transaction(self, watch_keys: Sequence[str]) -> Pipeline:
        """A MULTI/EXEC pipeline, with some keys watched already."""
        return await watching(self.pipeline(transaction=True), watch_keys)

    async def publish_command(self) -> str:
        """Which command reaches the subscribers of a channel."""
        return "PUBLISH"

    def node_of(self, _key: str) -> None:
        """There is one server."""

    async def run_scripts(self, calls: Sequence[ScriptCall]) -> list[Any]:
        """The replies to script calls that are made in one round trip, errors among them."""
        joined = JoinedCalls.of(calls)
        pipeline = self.pipeline(transaction=False)
        for command in script_commands([some.call for some in joined]):
            pipeline.execute_command(*command, **AS_BYTES)
        replies = await pipeline.execute(raise_on_error=False)
        self._rules.judge(replies)
        return [
            reply
            for some, answer in zip(joined, replies, strict=True)
            for reply in some.replies(answer)
        ]


class DeadlinePipeline(Pipeline):
    """The same for a pipeline: its WATCH, each immediate command, and its execution as a whole."""

    rules: CallRules

    async def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        call = super().immediate_execute_command(*args, **options)  # type: ignore[no-untyped-call]  # redis-py's
        return await self.rules.run(args[0], call)

    async def execute(self, raise_on_error: bool = True) -> list[Any]:  # noqa: FBT001, FBT002 - redis-py's signature
        return await self.rules.run("EXEC", super().execute(raise_on_error))

    async def reset(self) -> Any:
        # Also the way out of `async with`: a Redis that does not answer UNWATCH has lost this
        # connection by then, and the watch with it, so there is nothing to report.
        with contextlib.suppress(exceptions.TimeoutError):
            await self.rules.run("UNWATCH", super().reset())  # type: ignore[no-untyped-call]  # redis-py's


async def watching(pipeline: Pipeline, keys: Sequence[str]) -> Pipeline:
    """The pipeline, once it watches the keys; it is closed where it can't."""
    if keys:
        try:
            await pipeline.watch(*keys)
        except BaseException:
            # The caller gets no pipeline to close, and it holds a pooled connection.
            await pipeline.aclose()
            raise
    return pipeline
