"""Publishing from a terminal: what goes wrong there is an expected failure."""

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

from redis.exceptions import RedisError

from huleedu_service_libs.error_handling import HuleEduError
from huleedu_service_libs.redis_client import RedisClient
from services.websocket_service.cli.output import CliError
from services.websocket_service.cli.target import Backplane
from services.websocket_service.effective_settings import masked_url

CLIENT_ID = "websocket-service-cli"
ANSWER_TIMEOUT_S = 3.0


async def publish(backplane: Backplane, user: str, event: str, data: Mapping[str, Any]) -> int:
    """How many processes received the notification.

    Raises CliError if Redis is away or the data can't be published.
    """
    async with _redis(backplane) as redis:
        try:
            return await redis.publish_user_notification(user, event, data)
        except HuleEduError as error:
            raise CliError(error.error_detail.message) from None


async def ping(redis_url: str) -> None:
    """Raises CliError if no Redis answers there."""
    async with _redis(Backplane(redis_url=redis_url, channel_prefix="ws")) as redis:
        await redis.ping()


@contextlib.asynccontextmanager
async def _redis(backplane: Backplane) -> AsyncIterator[RedisClient]:
    shown_url = masked_url(backplane.redis_url)
    try:
        async with RedisClient(
            client_id=CLIENT_ID,
            redis_url=backplane.redis_url,
            channel_prefix=backplane.channel_prefix,
            timeout_s=ANSWER_TIMEOUT_S,
        ) as client:
            yield client
    except (RedisError, OSError) as error:
        reason = str(error) or type(error).__name__
        raise CliError(
            f"Redis at {shown_url} can't be used ({reason}): start it, or correct REDIS_URL"
        ) from None
