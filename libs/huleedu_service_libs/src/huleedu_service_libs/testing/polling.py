"""Waiting for what a remote server only tells when asked."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from redis.exceptions import ConnectionError as RedisConnectionError

# Only a topology that never gets there takes so long.
GIVE_UP_AFTER_S: Final = 30.0
POLL_INTERVAL_S: Final = 0.02


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Ask until the answer is yes; a server that can't be reached has not said yes.

    Raises TimeoutError after `GIVE_UP_AFTER_S` seconds.
    """
    async with asyncio.timeout(GIVE_UP_AFTER_S):
        while True:
            try:
                if await condition():
                    return
            except RedisConnectionError:
                pass
            await asyncio.sleep(POLL_INTERVAL_S)
