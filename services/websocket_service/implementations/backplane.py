from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

from huleedu_service_libs.redis_client import RedisClient


class RedisBackplane:
    """Notifications over Redis, and whether it is heard."""

    def __init__(self, client: RedisClient, *, timeout_s: float) -> None:
        self._client = client
        self._timeout_s = timeout_s

    def subscribe(self, channel: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        return self._client.subscribe(channel)

    def get_user_channel(self, user_id: str) -> str:
        return self._client.get_user_channel(user_id)

    @property
    def hears(self) -> bool:
        silent_for_s = self._client.subscription_statistics().silent_for_s
        return silent_for_s is not None and silent_for_s < self._timeout_s

    async def ping(self) -> None:
        await self._client.ping()
