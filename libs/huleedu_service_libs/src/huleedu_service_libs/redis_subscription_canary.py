"""A proof that a subscription connection hears: publish, and wait for it to come back.

What always holds:

1. There is at most one canary on its way. The next one is due only when that one was heard or
   its publication failed, so a slow Redis is not asked more often.
2. A connection is called deaf only if a canary was published for certain, its time was up, and
   Redis has answered a ping on that very connection since. The answer stands behind everything
   that Redis had sent before: neither a backlog nor an event loop that stood still looks deaf.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, Protocol
from uuid import uuid4

from redis import exceptions

logger = logging.getLogger(__name__)

Publish = Callable[[str, bytes], Awaitable[object]]
"""Publishes to a channel as publishers do; raises redis-py's exceptions.

It has to end when it is cancelled: redis-py with a socket timeout does not always.
"""

# A user's channel has a colon behind its prefix, whatever that is: none is ever called so.
CANARY_PREFIX: Final = "huleedu-canary-"
MAX_INTERVAL_S: Final = 1.0
# A connection that is well has to be proven again well before the last proof is too old.
INTERVALS_PER_TIMEOUT: Final = 2


class DeafConnectionError(exceptions.ConnectionError):
    """What was published did not come, though Redis answers."""


class Answering(Protocol):
    """What a canary asks of the connection that it proves."""

    async def answer(self) -> None:
        """Return once Redis has answered a ping."""
        ...


def canary_channel() -> str:
    """A channel that nobody else has."""
    return f"{CANARY_PREFIX}{uuid4().hex}"


class Canary:
    """Publishes to a channel of its own, every second or oftener for a short timeout.

    For one connection, on which it is subscribed as any channel is. `refusal` is set where an
    access list forbids that.
    """

    def __init__(self, channel: str, publish: Publish, *, timeout_s: float) -> None:
        self.name = channel.encode()
        self.refusal: Exception | None = None
        self._channel = channel
        self._publish = publish
        self._timeout_s = timeout_s
        self._interval_s = min(MAX_INTERVAL_S, timeout_s / INTERVALS_PER_TIMEOUT)
        self._number = 0
        self._withdrawn = False
        self._answered = asyncio.Event()
        self._heard = asyncio.Event()

    @property
    def wanted(self) -> bool:
        return True

    def acknowledge(self) -> None:
        self._answered.set()

    def refuse(self, error: Exception) -> None:
        self.refusal = error
        self._answered.set()

    def withdraw(self) -> None:
        """The channel has gone to another node of the cluster."""
        self._withdrawn = True
        self._answered.set()
        self._heard.set()

    def hear(self, payload: bytes) -> None:
        """Take what has come on the channel."""
        if payload == self._payload:
            self._heard.set()

    @property
    def _payload(self) -> bytes:
        return b"%d" % self._number

    async def prove(self, connection: Answering) -> None:
        """Publish and listen on; returns only if refused or withdrawn.

        Raises `DeafConnectionError`, or why the connection was lost.
        """
        await self._answered.wait()
        while self.refusal is None and not self._withdrawn:
            if await self._published():
                await self._come_back(connection)
            await asyncio.sleep(self._interval_s)

    async def _published(self) -> bool:
        self._number += 1
        self._heard.clear()
        try:
            await self._publish(self._channel, self._payload)
        except exceptions.NoPermissionError as error:
            self.refusal = error
        except (OSError, exceptions.RedisError) as error:
            # Redis is away for publishers. That says nothing of this connection.
            logger.debug("no canary published: %s", error)
        else:
            return True
        return False

    async def _come_back(self, connection: Answering) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._heard.wait()
        except TimeoutError:
            await connection.answer()
            if not self._heard.is_set():
                raise DeafConnectionError(
                    f"what was published was not heard within {self._timeout_s:g} s"
                ) from None
