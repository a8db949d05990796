"""The Redis client that services use: commands over a pool, subscriptions over one connection."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from types import TracebackType
from typing import Any, Self

from redis.asyncio import BlockingConnectionPool
from redis.asyncio.client import Pipeline
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError

from huleedu_service_libs.payload import Payload
from huleedu_service_libs.redis_channels import DEFAULT_CHANNEL_PREFIX
from huleedu_service_libs.redis_commands import DEFAULT_TIMEOUT_S, NOT_STARTED, RedisCommands
from huleedu_service_libs.redis_deadlines import DeadlineRedis
from huleedu_service_libs.redis_pubsub import RedisPubSub
from huleedu_service_libs.redis_subscription_connection import parse_redis_url
from huleedu_service_libs.redis_subscriptions import SubscriptionHub, SubscriptionStatistics

# Redis refuses a name with anything outside the printable ASCII characters.
_NAME_CHARACTERS = range(ord("!"), ord("~") + 1)


class RedisClient(RedisCommands):
    """Implements `AtomicRedisClientProtocol`; an async context manager, or `start()`/`stop()`.

    `start()` opens no connection, so that a service comes up while Redis is away; `ping()`
    tells. Commands take a connection from a pool of at most `max_connections` and raise
    redis-py's `TimeoutError` after `timeout_s` seconds without an answer. All subscribers
    share one further connection, which is replaced when it is lost or silent.

    Nothing that may have reached Redis is sent twice: a command whose connection breaks or
    whose answer is late raises, and the caller decides. Only a pooled connection that is known
    to be closed before the command is written is replaced without a word.

    Raises ValueError for a malformed `redis_url`, without quoting it.
    """

    def __init__(
        self,
        *,
        client_id: str,
        redis_url: str = "redis://redis:6379",
        channel_prefix: str = DEFAULT_CHANNEL_PREFIX,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        max_connections: int = 50,
        payload_type: type[Payload] = Payload,
    ) -> None:
        self._client_name = "".join(c if ord(c) in _NAME_CHARACTERS else "-" for c in client_id)
        self._redis_url = redis_url
        self._address = parse_redis_url(redis_url)
        self._timeout_s = timeout_s
        self._max_connections = max_connections
        self._payload_type = payload_type
        self._pubsub = RedisPubSub(self, client_id, channel_prefix=channel_prefix)
        self._scripts: dict[str, str] = {}
        self._resources: AsyncExitStack | None = None
        self._hub: SubscriptionHub | None = None

    async def start(self) -> None:
        """Make the client usable; a second call changes nothing."""
        if self._resources is not None:
            return
        async with AsyncExitStack() as resources:
            pool = BlockingConnectionPool(**self._pool_options())
            self._redis = await resources.enter_async_context(DeadlineRedis(pool, self._timeout_s))
            self._hub = await resources.enter_async_context(
                SubscriptionHub(
                    self._redis_url,
                    client_name=f"{self._client_name}:subscriptions",
                    timeout_s=self._timeout_s,
                    payload_type=self._payload_type,
                )
            )
            self._resources = resources.pop_all()

    def _pool_options(self) -> dict[str, Any]:
        return {
            **self._address,
            "client_name": self._client_name,
            "decode_responses": True,
            "max_connections": self._max_connections,
            "socket_connect_timeout": self._timeout_s,
            "socket_timeout": None,
            "timeout": None,
            # With RESP3, redis-py 8 expects push messages on idle connections and therefore no
            # longer looks whether one was closed: after a restart of Redis the first command
            # of each pooled connection would fail.
            "protocol": 2,
            # A retry after a timeout or a lost connection can publish twice.
            "retry": Retry(NoBackoff(), 0),
        }

    async def stop(self) -> None:
        """Close every connection and end every subscription; a second call changes nothing."""
        resources, self._resources = self._resources, None
        self._redis = self._hub = None
        if resources is not None:
            await resources.aclose()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    @property
    def _subscriptions(self) -> SubscriptionHub:
        if self._hub is None:
            raise RuntimeError(NOT_STARTED)
        return self._hub

    # Publish and subscribe

    async def publish(self, channel: str, message: str | bytes) -> int:
        return int(await self._commands.publish(channel, message))

    def subscribe(self, channel: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        return self._subscriptions.subscribe(channel)

    def open_subscriptions(self) -> None:
        """Open the subscription connection now rather than at the first `subscribe()`."""
        self._subscriptions.open()

    def subscription_statistics(self) -> SubscriptionStatistics:
        """What the shared subscription connection carries."""
        return self._subscriptions.statistics()

    def get_user_channel(self, user_id: str) -> str:
        return self._pubsub.get_user_channel(user_id)

    async def publish_user_notification(
        self, user_id: str, event_type: str, data: Mapping[str, Any]
    ) -> int:
        return await self._pubsub.publish_user_notification(user_id, event_type, data)

    # Transactions and scripts

    async def create_transaction_pipeline(self, *watch_keys: str) -> Pipeline:
        pipeline = self._commands.pipeline(transaction=True)
        if watch_keys:
            try:
                await pipeline.watch(*watch_keys)
            except BaseException:
                # The caller gets no pipeline to close, and it holds a pooled connection.
                await pipeline.aclose()
                raise
        return pipeline

    async def register_script(self, body: str) -> str:
        sha = str(await self._commands.script_load(body))
        self._scripts[sha] = body
        return sha

    async def execute_script(
        self, sha: str, keys: Sequence[str], args: Sequence[str | bytes | float]
    ) -> Any:
        """Run a registered script in one round trip, or in two after Redis has restarted."""
        try:
            return await self._commands.evalsha(sha, len(keys), *keys, *args)
        except NoScriptError:
            if sha not in self._scripts:
                raise
            return await self._commands.eval(self._scripts[sha], len(keys), *keys, *args)
