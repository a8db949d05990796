from contextlib import AbstractAsyncContextManager
from types import TracebackType

from redis.exceptions import RedisError

from huleedu_service_libs.history_pages import HistoryPage, Unproven
from huleedu_service_libs.notification_ids import NotificationId
from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.subscription import Subscription
from services.websocket_service.protocols import BackplaneUnavailableError


class RedisBackplane:
    """Notifications over Redis, and whether it is heard."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    def subscribe(self, channel: str) -> AbstractAsyncContextManager[Subscription]:
        return _Subscribing(self._client.subscribe(channel, mark_gaps=True))

    def get_user_channel(self, user_id: str) -> str:
        return self._client.get_user_channel(user_id)

    async def newest(self, user_id: str) -> NotificationId:
        try:
            return await self._client.history.newest(user_id)
        except RedisError as error:
            raise BackplaneUnavailableError(str(error)) from error

    async def after(self, user_id: str, cursor: NotificationId) -> HistoryPage | Unproven:
        try:
            return await self._client.history.after(user_id, cursor)
        except RedisError as error:
            raise BackplaneUnavailableError(str(error)) from error

    @property
    def hears(self) -> bool:
        return self._client.hears

    async def ping(self) -> None:
        try:
            await self._client.ping()
        except RedisError as error:
            raise BackplaneUnavailableError(str(error)) from error


class _Subscribing:
    """A subscription of the client; what Redis answers to it is the backplane's failure.

    One is kept for each connection: an `AsyncExitStack` in a generator would take 1.5 kB more.
    """

    __slots__ = ("_subscribing",)

    def __init__(self, subscribing: AbstractAsyncContextManager[Subscription]) -> None:
        self._subscribing = subscribing

    async def __aenter__(self) -> Subscription:
        try:
            return await self._subscribing.__aenter__()
        except RedisError as error:
            raise BackplaneUnavailableError(str(error)) from error

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._subscribing.__aexit__(exc_type, exc, traceback)
