"""Redis from a terminal: what goes wrong there is an expected failure."""

import contextlib
from collections.abc import AsyncIterator

from redis.exceptions import RedisError

from huleedu_service_libs.redis_client import RedisClient
from services.websocket_service.cli.output import CliError
from services.websocket_service.cli.target import Backplane
from services.websocket_service.effective_settings import masked_url

CLIENT_ID = "websocket-service-cli"
ANSWER_TIMEOUT_S = 3.0


@contextlib.asynccontextmanager
async def redis_client(backplane: Backplane) -> AsyncIterator[RedisClient]:
    """A client of the library; inside, redis-py's exceptions become a CliError."""
    shown_url = masked_url(backplane.redis_url)
    try:
        async with RedisClient(
            client_id=CLIENT_ID,
            redis_url=backplane.redis_url,
            channel_prefix=backplane.channel_prefix,
            history_limits=backplane.history_limits,
            timeout_s=ANSWER_TIMEOUT_S,
        ) as client:
            yield client
    except (RedisError, OSError) as error:
        reason = str(error) or type(error).__name__
        raise CliError(
            f"Redis at {shown_url} can't be used ({reason}): start it, or correct REDIS_URL"
        ) from None
