"""The Redis client that services use: commands over a pool, subscriptions over one connection."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from types import TracebackType
from typing import Any, Self
from uuid import UUID

from huleedu_service_libs.notification_history import NotificationHistory
from huleedu_service_libs.notification_settings import HistoryLimits
from huleedu_service_libs.notifications import Notification, NotificationReceipt
from huleedu_service_libs.payload import Payload
from huleedu_service_libs.protocols import PublishOutcome
from huleedu_service_libs.redis_address import RedisAddress
from huleedu_service_libs.redis_channels import DEFAULT_CHANNEL_PREFIX
from huleedu_service_libs.redis_commands import DEFAULT_TIMEOUT_S, NOT_STARTED
from huleedu_service_libs.redis_connections import command_connections
from huleedu_service_libs.redis_pubsub import RedisPubSub
from huleedu_service_libs.redis_scripting import RedisScripting
from huleedu_service_libs.redis_sentinel import SentinelSet
from huleedu_service_libs.redis_subscriptions import SubscriptionHub, SubscriptionStatistics
from huleedu_service_libs.subscription import DEFAULT_MAX_PENDING_BYTES, Subscription

# Redis refuses a name with anything outside the printable ASCII characters.
_NAME_CHARACTERS = range(ord("!"), ord("~") + 1)


class RedisClient(RedisScripting):
    """Implements `AtomicRedisClientProtocol`; an async context manager, or `start()`/`stop()`.

    `start()` opens no connection, so that a service comes up while Redis is away; `ping()`
    tells. Commands take a connection from a pool of at most `max_connections`, on a Cluster from
    one for each node, and raise redis-py's `TimeoutError` after `timeout_s` seconds without an
    answer. All subscribers share one further connection, which is replaced when it is lost or
    silent; for each, at most `max_pending_bytes` wait to be taken.

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
        history_limits: HistoryLimits | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        max_connections: int = 50,
        max_pending_bytes: int = DEFAULT_MAX_PENDING_BYTES,
        payload_type: type[Payload] = Payload,
    ) -> None:
        super().__init__()
        self._client_name = "".join(c if ord(c) in _NAME_CHARACTERS else "-" for c in client_id)
        self._address = RedisAddress.parse(redis_url)
        self._timeout_s = timeout_s
        self._max_connections = max_connections
        self._max_pending_bytes = max_pending_bytes
        self._payload_type = payload_type
        self._pubsub = RedisPubSub(
            self, client_id, channel_prefix=channel_prefix, limits=history_limits
        )
        self._history = NotificationHistory(
            self, channel_prefix=channel_prefix, limits=history_limits, timeout_s=timeout_s
        )
        self._resources: AsyncExitStack | None = None
        self._hub: SubscriptionHub | None = None

    async def start(self) -> None:
        """Make the client usable; a second call changes nothing."""
        if self._resources is not None:
            return
        async with AsyncExitStack() as resources:
            # Shared, so that commands and subscriptions do not long follow different masters.
            sentinels = SentinelSet(self._address)
            resources.push_async_callback(sentinels.aclose)
            commands = command_connections(
                self._address,
                sentinels,
                client_name=self._client_name,
                timeout_s=self._timeout_s,
                max_connections=self._max_connections,
            )
            self._redis = await resources.enter_async_context(commands)
            self._hub = await resources.enter_async_context(
                SubscriptionHub(
                    self._address,
                    client_name=f"{self._client_name}:subscriptions",
                    publish=commands.publish,
                    spublish=commands.spublish,
                    sentinels=sentinels,
                    timeout_s=self._timeout_s,
                    max_pending_bytes=self._max_pending_bytes,
                    payload_type=self._payload_type,
                )
            )
            # First, so that nobody who waits asks a client that is closed already.
            resources.push_async_callback(self._history.aclose)
            self._resources = resources.pop_all()

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

    def subscribe(
        self, channel: str, *, mark_gaps: bool = False
    ) -> AbstractAsyncContextManager[Subscription]:
        return self._subscriptions.subscribe(channel, mark_gaps=mark_gaps)

    def open_subscriptions(self) -> None:
        """Open the subscription connection now rather than at the first `subscribe()`."""
        self._subscriptions.open()

    @property
    def hears(self) -> bool:
        """Whether subscribers would hear now what is published now."""
        return self._subscriptions.hears

    def subscription_statistics(self) -> SubscriptionStatistics:
        """What the shared subscription connection carries."""
        return self._subscriptions.statistics()

    def get_user_channel(self, user_id: str) -> str:
        return self._pubsub.get_user_channel(user_id)

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
        return await self._pubsub.publish_user_notification(
            user_id,
            event_type,
            data,
            durable=durable,
            idempotency_key=idempotency_key,
            collapse_key=collapse_key,
            expires_in_s=expires_in_s,
            correlation_id=correlation_id,
            source_service=source_service,
        )

    async def publish_notification(self, notification: Notification) -> NotificationReceipt:
        return await self._pubsub.publish_notification(notification)

    async def publish_notifications(
        self, notifications: Sequence[Notification]
    ) -> list[NotificationReceipt]:
        return await self._pubsub.publish_notifications(notifications)

    async def publish_each(self, notifications: Sequence[Notification]) -> list[PublishOutcome]:
        return await self._pubsub.publish_each(notifications)

    @property
    def history(self) -> NotificationHistory:
        """What was published durably, for readers."""
        return self._history
