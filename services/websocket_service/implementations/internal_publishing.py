"""What the internal API does in Redis by way of the shared library."""

from collections.abc import Sequence
from typing import Final

from redis.exceptions import RedisError

from huleedu_service_libs.history_pages import HistoryPage
from huleedu_service_libs.notification_ids import (
    NotificationId,
    is_origin,
    offset_of,
    parse_notification_id,
)
from huleedu_service_libs.notifications import Notification
from huleedu_service_libs.redis_client import RedisClient
from services.websocket_service.frames import ResyncReason
from services.websocket_service.implementations.redis_failures import redis_failures
from services.websocket_service.internal_api.protocols import KeptHistory, Outcome
from services.websocket_service.protocols import BackplaneUnavailableError
from services.websocket_service.resumption import resync_reason

# Redis trims histories; as long as that works none has so many.
_EVERYTHING: Final = 1_000_000
# Nobody's: asking for what follows it tells where the history stands and, unlike asking for the
# newest id, makes no origin for a user who has none.
_NO_ID: Final = NotificationId("0-0")


class RedisPublisher:
    """Publishes as every service does."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    async def publish_each(self, notifications: Sequence[Notification]) -> Sequence[Outcome]:
        return [
            BackplaneUnavailableError(str(outcome)) if isinstance(outcome, RedisError) else outcome
            for outcome in await self._client.publish_each(notifications)
        ]


class RedisKeptHistory:
    """Reads what is kept; each call takes `timeout_s` at most."""

    def __init__(self, client: RedisClient, *, timeout_s: float) -> None:
        self._client = client
        self._timeout_s = timeout_s

    async def newest(self, user_id: str, *, limit: int) -> KeptHistory:
        async with redis_failures(self._timeout_s):
            kept = await self._client.history.kept(user_id, max_entries=limit)
            if kept:
                return KeptHistory(kept, kept[-1].id)
            newest = (await self._client.history.after(user_id, _NO_ID, max_entries=1)).newest
        return KeptHistory((), None if newest is None or is_origin(newest) else newest)

    async def after(self, user_id: str, id_: str, *, limit: int) -> KeptHistory | ResyncReason:
        cursor = parse_notification_id(id_)
        if cursor is None:
            return ResyncReason.CURSOR_UNKNOWN
        async with redis_failures(self._timeout_s):
            kept = await self._client.history.kept(user_id, max_entries=_EVERYTHING)
            # Asked later: what it can still prove was whole before.
            found = await self._client.history.after(user_id, cursor, max_entries=1)
        if not isinstance(found, HistoryPage):
            return resync_reason(found, cursor)
        following = [one for one in kept if offset_of(one.id) > offset_of(cursor)]
        return KeptHistory(following[:limit], found.newest)
