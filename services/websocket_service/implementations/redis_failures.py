import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from redis.exceptions import RedisError

from services.websocket_service.protocols import BackplaneUnavailableError


@contextmanager
def redis_errors() -> Iterator[None]:
    """Raises BackplaneUnavailableError for what fails."""
    try:
        yield
    except RedisError as error:
        raise BackplaneUnavailableError(str(error)) from error


@asynccontextmanager
async def redis_failures(timeout_s: float) -> AsyncIterator[None]:
    """Raises BackplaneUnavailableError for what fails, or is not done after so many seconds."""
    try:
        with redis_errors():
            async with asyncio.timeout(timeout_s):
                yield
    except TimeoutError as error:
        raise BackplaneUnavailableError(f"not done after {timeout_s:g} s") from error
