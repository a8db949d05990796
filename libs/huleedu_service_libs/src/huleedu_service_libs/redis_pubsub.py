"""Publishing to users, and subscribing, over a Redis client."""

import math
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from redis.exceptions import RedisError

from huleedu_service_libs.error_handling import HuleEduError, raise_validation_error
from huleedu_service_libs.expiry_renewals import ExpiryRenewals
from huleedu_service_libs.notification_ids import NotificationId
from huleedu_service_libs.notification_scripts import (
    RECEIVERS_BASE,
    PublishScripts,
    renewal_interval_s,
)
from huleedu_service_libs.notification_settings import HistoryLimits
from huleedu_service_libs.notifications import Notification, NotificationReceipt
from huleedu_service_libs.protocols import AtomicRedisClientProtocol, PublishOutcome
from huleedu_service_libs.redis_channels import (
    DEFAULT_CHANNEL_PREFIX,
    ChannelName,
    UserKeys,
    user_channel,
)
from huleedu_service_libs.redis_scripts import Script, ScriptCall


class RedisPubSub:
    """Names channels and publishes notifications; `client` carries them."""

    def __init__(
        self,
        client: AtomicRedisClientProtocol,
        client_id: str,
        *,
        channel_prefix: str = DEFAULT_CHANNEL_PREFIX,
        limits: HistoryLimits | None = None,
    ) -> None:
        self._client = client
        self._client_id = client_id
        self._channel_prefix = channel_prefix
        self._limits = limits or HistoryLimits()
        self._scripts: dict[str, PublishScripts] = {}
        self._renewals = ExpiryRenewals(renewal_interval_s(self._limits))

    async def publish(self, channel: str, message: str | bytes) -> int:
        """How many subscribers Redis handed the message to."""
        return await self._client.publish(channel, message)

    def subscribe(
        self, channel: str, *, mark_gaps: bool = False
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Enter once Redis has acknowledged; iterate over payloads as they were published."""
        return self._client.subscribe(channel, mark_gaps=mark_gaps)

    def get_user_channel(self, user_id: str) -> str:
        """The channel that carries one user's notifications."""
        return self._channel(user_id)

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

        The parameters are those of `Notification`; errors are those of `publish_notifications`.
        """
        receipt = await self.publish_notification(
            Notification(
                user_id=user_id,
                event_type=event_type,
                data=data,
                durable=durable,
                idempotency_key=idempotency_key,
                collapse_key=collapse_key,
                expires_in_s=expires_in_s,
                correlation_id=correlation_id,
                source_service=source_service,
            )
        )
        return receipt.receivers

    async def publish_notification(self, notification: Notification) -> NotificationReceipt:
        """Publish one notification in one round trip; errors as with `publish_notifications`."""
        message = self._encoded(notification)
        if not notification.durable:
            channel = self._channel(notification.user_id)
            return NotificationReceipt(None, await self._client.publish(channel, message))
        publication = self._publication(notification, message, await self._publish_scripts(), set())
        call = publication.call
        return self._receipt(
            publication, await self._client.run_script(call.script, call.keys, call.args)
        )

    async def publish_notifications(
        self, notifications: Sequence[Notification]
    ) -> list[NotificationReceipt]:
        """Publish many in one round trip, in their order for each user.

        All are validated first: raises HuleEduError (VALIDATION_ERROR, `details.index`) with
        nothing published. Raises redis-py's exceptions; what had reached Redis before stays
        published, and can be repeated safely where it has an idempotency key.
        """
        messages: list[bytes] = []
        for index, notification in enumerate(notifications):
            try:
                messages.append(self._encoded(notification))
            except HuleEduError as error:
                raise error.add_detail("index", index) from error
        outcomes = await self._publish(list(zip(notifications, messages, strict=True)))
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        return [outcome for outcome in outcomes if not isinstance(outcome, Exception)]

    async def publish_each(self, notifications: Sequence[Notification]) -> list[PublishOutcome]:
        """Publish many in one round trip, in their order for each user, and tell of each.

        The outcomes stand in the order of the notifications: a receipt; HuleEduError
        (VALIDATION_ERROR), with nothing published; or redis-py's exception, and it may have been
        published: repeat it with the same idempotency key. Nothing is raised for one of them.
        """
        outcomes: dict[int, PublishOutcome] = {}
        valid: dict[int, tuple[Notification, bytes]] = {}
        for index, notification in enumerate(notifications):
            try:
                valid[index] = notification, self._encoded(notification)
            except HuleEduError as error:
                outcomes[index] = error
        try:
            published = await self._publish(list(valid.values()))
        except RedisError as error:
            outcomes |= dict.fromkeys(valid, error)
        else:
            outcomes |= zip(valid, published, strict=True)
        return [outcomes[index] for index in range(len(notifications))]

    async def _publish(
        self, encoded: Sequence[tuple[Notification, bytes]]
    ) -> list[NotificationReceipt | RedisError]:
        scripts = await self._publish_scripts()
        renewing: set[ChannelName] = set()
        publications = [
            self._publication(notification, message, scripts, renewing)
            for notification, message in encoded
        ]
        replies = await self._client.run_scripts([publication.call for publication in publications])
        return [
            reply if isinstance(reply, RedisError) else self._receipt(publication, reply)
            for publication, reply in zip(publications, replies, strict=True)
        ]

    def _encoded(self, notification: Notification) -> bytes:
        message = notification.encode(
            service=self._client_id, max_bytes=self._limits.max_payload_bytes
        )
        try:
            self._channel(notification.user_id)
        except ValueError as error:
            raise_validation_error(
                self._client_id, "publish_user_notification", "user_id", str(error), None
            )
        return message

    def _channel(self, user_id: str) -> ChannelName:
        return user_channel(user_id, self._channel_prefix)

    async def _publish_scripts(self) -> PublishScripts:
        command = await self._client.publish_command()
        scripts = self._scripts.get(command)
        if scripts is None:
            scripts = self._scripts[command] = PublishScripts.of(self._limits, command)
        return scripts

    def _publication(
        self,
        notification: Notification,
        message: bytes,
        scripts: PublishScripts,
        renewing: set[ChannelName],
    ) -> "_Publication":
        channel = self._channel(notification.user_id)
        if not notification.durable:
            return _Publication(channel, ScriptCall(scripts.transient, [channel], [message]))
        renewed_at = None if channel in renewing else self._renewals.due_at(channel)
        if renewed_at is None:
            durable = scripts.durable
        else:
            durable = scripts.renewing
            renewing.add(channel)
        nonce = f"-{secrets.randbits(63)}"
        keys = UserKeys.of(channel)
        names: list[str] = [keys.last, keys.history]
        args: list[str | bytes] = [message[1:], nonce, channel]
        joint: Script | None = durable.joint
        if notification.idempotency_key is not None:
            names.append(keys.idempotency(notification.idempotency_key))
            joint = None
        if notification.collapse_key is not None or notification.expires_in_s is not None:
            expires_in_ms = math.ceil((notification.expires_in_s or 0) * 1000)
            args += [notification.collapse_key or "", str(expires_in_ms or "")]
            joint = None
        call = ScriptCall(durable.one, names, args, joint)
        return _Publication(channel, call, nonce, renewed_at)

    def _receipt(self, publication: "_Publication", reply: bytes | int) -> NotificationReceipt:
        if isinstance(reply, bytes):
            return NotificationReceipt(NotificationId(reply.decode()), 0, duplicate=True)
        if publication.nonce is None:
            return NotificationReceipt(None, reply)
        if publication.renewed_at is not None:
            self._renewals.done(publication.channel, publication.renewed_at)
        offset, receivers = divmod(reply, RECEIVERS_BASE)
        return NotificationReceipt(NotificationId(f"{offset}{publication.nonce}"), receivers)


@dataclass(frozen=True, slots=True)
class _Publication:
    """A notification on its way to Redis."""

    channel: ChannelName
    call: ScriptCall
    nonce: str | None = None
    """None for one that is not durable."""
    renewed_at: float | None = None
    """Where it renews the expiries: a time before Redis does."""
