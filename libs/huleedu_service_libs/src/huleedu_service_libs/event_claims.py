"""Who handles an event: a claim on it in Redis, for one delivery.

What always holds:

1. Redis being away costs protection and never an event: a claim that Redis did not answer counts
   as made.
2. A claim is deleted only where Redis has said that it was one's own, and before it lapses; never
   once the event was confirmed: by the handler's word the work is done, whether or not Redis has
   heard of it. What Redis has forgotten meanwhile (a flush, a failover, an eviction) is not looked
   at: a claim that somebody else has put in its place is deleted with it.
"""

import asyncio
import json
import logging
from collections.abc import Callable
from itertools import takewhile
from typing import Final
from uuid import uuid4

from redis.exceptions import RedisError

from common_core.timestamps import utc_now
from huleedu_service_libs.protocols import RedisClientProtocol

__all__ = ["CLAIM_TTL_S", "RELEASE_TIMEOUT_S", "EventClaim", "EventClaims"]

logger = logging.getLogger(__name__)

CLAIM_TTL_S: Final = 300
RELEASE_TIMEOUT_S: Final = 5.0
"""For at most so long a release holds back what has ended the handler."""

# The second is for other implementations of the protocol, and for the release that takes too long.
_REDIS_AWAY: Final = (RedisError, OSError)


class EventClaim:
    """One delivery's claim on the event with this key.

    Once confirmed, the event counts as done for `completed_ttl_s` seconds. `clock` is in seconds
    and monotonic.
    """

    def __init__(
        self,
        redis: RedisClientProtocol,
        key: str,
        completed_ttl_s: int,
        clock: Callable[[], float],
    ) -> None:
        self.key = key
        self._redis = redis
        self._completed_ttl_s = completed_ttl_s
        self._clock = clock
        self._entry = _entry("processing", claim_id=uuid4().hex, claimed_at=utc_now().isoformat())
        self._lapses_at = clock()
        # False also where Redis may have taken it without our having heard.
        self._is_certain = False
        self._confirmed = False

    @property
    def has_lapsed(self) -> bool:
        """True where Redis may have forgotten it, and somebody else have claimed the event."""
        return self._clock() >= self._lapses_at

    async def take(self) -> bool:
        """False where the event is done, or another delivery has claimed it.

        A claim whose release has failed may be taken again.
        """
        left_behind = not self.has_lapsed
        self._confirmed = self._is_certain = False
        self._lapses_at = self._clock() + CLAIM_TTL_S
        try:
            taken = await self._redis.set_if_not_exists(
                self.key, self._entry, ttl_seconds=CLAIM_TTL_S
            )
            if not taken and left_behind and await self._stands():
                taken = await self._redis.setex(self.key, CLAIM_TTL_S, self._entry)
        except _REDIS_AWAY as error:
            logger.warning("handled unprotected, Redis did not take %s: %s", self.key, error)
            return True
        self._is_certain = taken
        return taken

    async def confirm(self) -> None:
        """The event is done. A second call changes nothing but when that is forgotten."""
        self._confirmed = True
        entry = _entry("completed", completed_at=utc_now().isoformat())
        try:
            await self._redis.setex(self.key, self._completed_ttl_s, entry)
        except _REDIS_AWAY as error:
            self._report("done, and Redis did not take", error)

    async def release(self) -> bool:
        """Let the event be claimed again; False where Redis did not hear of it."""
        if self._confirmed or self.has_lapsed:
            return True
        try:
            async with asyncio.timeout(RELEASE_TIMEOUT_S):
                if self._is_certain or await self._stands():
                    await self._redis.delete_key(self.key)
        except _REDIS_AWAY as error:
            self._report("not released, Redis did not delete", error)
            # It may be deleted yet, and then be somebody else's.
            self._is_certain = False
            return False
        return True

    async def _stands(self) -> bool:
        return await self._redis.get(self.key) == self._entry

    def _report(self, what: str, error: Exception) -> None:
        # Where there is no claim, that Redis is away has been said.
        level = logging.WARNING if self._is_certain else logging.DEBUG
        logger.log(level, "%s %s: %s", what, self.key, str(error) or type(error).__name__)


class EventClaims:
    """The claims of one consumer.

    Those that it failed to release are remembered until they lapse, so that a redelivery to this
    process is no duplicate of the delivery that failed.
    """

    def __init__(self, redis: RedisClientProtocol, *, clock: Callable[[], float]) -> None:
        self._redis = redis
        self._clock = clock
        # Oldest first.
        self._left_behind: dict[str, EventClaim] = {}

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self._left_behind)

    def on(self, key: str, completed_ttl_s: int) -> EventClaim:
        """A claim to take."""
        return self._left_behind.pop(key, None) or EventClaim(
            self._redis, key, completed_ttl_s, self._clock
        )

    async def release(self, claim: EventClaim) -> None:
        """Release it, also where this call is cancelled: then when the event comes again."""
        released = False
        try:
            released = await claim.release()
        finally:
            if not released:
                self._remember(claim)

    def _remember(self, claim: EventClaim) -> None:
        for lapsed in list(takewhile(lambda old: old.has_lapsed, self._left_behind.values())):
            del self._left_behind[lapsed.key]
        self._left_behind[claim.key] = claim


def _entry(status: str, **about: str) -> str:
    return json.dumps({"status": status, **about})
