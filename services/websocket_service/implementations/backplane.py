import contextlib
from collections.abc import AsyncIterator

from redis.exceptions import RedisError

from huleedu_service_libs.redis_client import RedisClient
from services.websocket_service.protocols import BackplaneUnavailableError


class RedisBackplane:
    """Notifications over Redis, and whether it is heard."""

    def __init__(self, client: RedisClient, *, timeout_s: float) -> None:
        self._client = client
        self._timeout_s = timeout_s

    @contextlib.asynccontextmanager
    async def subscribe(self, channel: str) -> AsyncIterator[AsyncIterator[bytes]]:
        async with contextlib.AsyncExitStack() as stack:
            try:
                payloads = await stack.enter_async_context(self._client.subscribe(channel))
            except RedisError as error:
                raise BackplaneUnavailableError(str(error)) from error
            yield payloads

    def get_user_channel(self, user_id: str) -> str:
        return self._client.get_user_channel(user_id)

    @property
    def hears(self) -> bool:
        # Longer than that, and the client is replacing its connection already.
        silent_for_s = self._client.subscription_statistics().silent_for_s
        return silent_for_s is not None and silent_for_s < self._timeout_s

    async def ping(self) -> None:
        try:
            await self._client.ping()
        except RedisError as error:
            raise BackplaneUnavailableError(str(error)) from error
