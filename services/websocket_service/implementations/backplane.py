import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, TypeVar

from redis.exceptions import RedisError

from huleedu_service_libs.history_pages import HistoryPage, Unproven
from huleedu_service_libs.notification_ids import NotificationId
from huleedu_service_libs.redis_client import RedisClient
from services.websocket_service.protocols import BackplaneUnavailableError

T = TypeVar("T")

MAX_READERS: Final = 6
"""Histories read at once: a storm of resumes must leave time for everything else."""
QUEUE_TIMEOUT_S: Final = 10.0


class RedisBackplane:
    """Notifications over Redis, and whether it is heard."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self._readers = asyncio.Semaphore(MAX_READERS)

    @contextlib.asynccontextmanager
    async def subscribe(self, channel: str) -> AsyncIterator[AsyncIterator[bytes]]:
        async with contextlib.AsyncExitStack() as stack:
            try:
                payloads = await stack.enter_async_context(
                    self._client.subscribe(channel, mark_gaps=True)
                )
            except RedisError as error:
                raise BackplaneUnavailableError(str(error)) from error
            yield payloads

    def get_user_channel(self, user_id: str) -> str:
        return self._client.get_user_channel(user_id)

    async def newest(self, user_id: str) -> NotificationId:
        return await self._read(lambda: self._client.history.newest(user_id))

    async def after(self, user_id: str, cursor: NotificationId) -> HistoryPage | Unproven:
        return await self._read(lambda: self._client.history.after(user_id, cursor))

    async def _read(self, read: Callable[[], Awaitable[T]]) -> T:
        # Waiting for one's turn must not count against Redis, and must end when it is hung.
        try:
            async with asyncio.timeout(QUEUE_TIMEOUT_S):
                await self._readers.acquire()
        except TimeoutError:
            raise BackplaneUnavailableError("too many histories are being read") from None
        try:
            return await read()
        except RedisError as error:
            raise BackplaneUnavailableError(str(error)) from error
        finally:
            self._readers.release()

    @property
    def hears(self) -> bool:
        return self._client.hears

    async def ping(self) -> None:
        try:
            await self._client.ping()
        except RedisError as error:
            raise BackplaneUnavailableError(str(error)) from error
