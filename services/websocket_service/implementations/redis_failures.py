import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.exceptions import RedisError

from services.websocket_service.protocols import BackplaneUnavailableError


@asynccontextmanager
async def redis_failures(timeout_s: float) -> AsyncIterator[None]:
    """Raises BackplaneUnavailableError for what fails, or is not done after so many seconds."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError as error:
        raise BackplaneUnavailableError(f"not done after {timeout_s:g} s") from error
    except RedisError as error:
        raise BackplaneUnavailableError(str(error)) from error
