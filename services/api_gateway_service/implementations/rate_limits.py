"""How many requests each user makes, over all processes that share a Redis.

A sorted set for each user holds the moments of the requests that were let through in the last
window, by Redis' clock: so no window, whenever it begins, has more than the limit. The script says
in the same round trip what is left. Redis has a hash of the user's id: whatever it is made of, no
two users share a key, and nobody reads there who they are.
"""

import hashlib
from typing import Final

from redis.exceptions import RedisError

from huleedu_service_libs.logging_utils import create_service_logger
from huleedu_service_libs.protocols import AtomicRedisClientProtocol
from huleedu_service_libs.redis_scripts import Script
from services.api_gateway_service.circuit_breaker import CircuitBreaker, CircuitOpenError
from services.api_gateway_service.metrics import GatewayMetrics
from services.api_gateway_service.protocols import RateLimitDecision

logger = create_service_logger(__name__)

REDIS_RETRY_S: Final = 1.0
"""Without Redis, one request in so many seconds finds out whether it is back."""

_MICROSECONDS: Final = 1_000_000
# What is refused is not kept: who goes on asking does not stay out for that.
_TAKE: Final = Script(
    """
local key, limit, window_us = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
redis.call('ZREMRANGEBYSCORE', key, '-inf', now_us - window_us)
local taken = redis.call('ZCARD', key)
local allowed = taken < limit
if allowed then
  redis.call('ZADD', key, now_us, string.format('%.0f', now_us))
  redis.call('PEXPIRE', key, math.ceil(window_us / 1000))
  taken = taken + 1
end
local oldest_us = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')[2]
return {allowed and 1 or 0, limit - taken, oldest_us + window_us - now_us}
"""
)


class RateLimits:
    """A `RateLimitsProtocol`: `limit` requests of one user in any `window_s` seconds.

    Without Redis everybody is let through, which is counted. `breaker` opens at the first failure:
    a Redis that hangs costs those a timeout who ask at that moment, and then one at a time.
    """

    def __init__(
        self,
        redis: AtomicRedisClientProtocol,
        breaker: CircuitBreaker,
        metrics: GatewayMetrics,
        *,
        limit: int,
        window_s: int,
    ) -> None:
        self._redis = redis
        self._breaker = breaker
        self._metrics = metrics
        self._limit = limit
        self._window_s = window_s
        self._counting = True

    async def check(self, key: str) -> RateLimitDecision:
        try:
            with self._breaker.attempt() as attempt:
                try:
                    decision = await self._take(key)
                except RedisError as error:
                    attempt.succeeded = False
                    self._note(counting=False, reason=str(error))
                else:
                    attempt.succeeded = True
                    self._note(counting=True)
                    return decision
        except CircuitOpenError:
            pass
        self._metrics.rate_limits_unchecked.inc()
        return RateLimitDecision(
            allowed=True, limit=self._limit, remaining=self._limit, reset_after_s=0
        )

    async def _take(self, key: str) -> RateLimitDecision:
        allowed, remaining, reset_after_us = await self._redis.run_script(
            _TAKE, [_redis_key(key)], [self._limit, self._window_s * _MICROSECONDS]
        )
        return RateLimitDecision(
            allowed=allowed == 1,
            limit=self._limit,
            # One that was lowered a moment ago is exceeded already.
            remaining=max(0, remaining),
            reset_after_s=reset_after_us / _MICROSECONDS,
        )

    def _note(self, *, counting: bool, reason: str | None = None) -> None:
        if counting == self._counting:
            return
        self._counting = counting
        if counting:
            logger.info("requests are limited again")
        else:
            logger.warning("requests are not limited: Redis is away", reason=reason)


def _redis_key(user_id: str) -> str:
    digest = hashlib.sha256(user_id.encode(errors="surrogatepass")).hexdigest()
    return f"gateway:rate-limit:{digest}"
