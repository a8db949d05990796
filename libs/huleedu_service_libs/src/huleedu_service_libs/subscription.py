"""What one subscriber of a channel has been given and has not taken yet."""

import asyncio
from collections import deque
from typing import Final, Self

from huleedu_service_libs.payload import Gap, Payload

DEFAULT_MAX_PENDING_BYTES: Final = 16 * 1024 * 1024
# What a queued payload costs beside its own bytes (CPython 3.11, by tracemalloc). Without it,
# empty payloads would pile up without a bound.
PAYLOAD_OVERHEAD_BYTES: Final = 280


class SubscriptionOverflowError(Exception):
    """The subscriber took payloads more slowly than they came and its queue is full."""


class Subscription:
    """An async iterator of the payloads of one channel, in the order of publication.

    For one consumer. Raises `SubscriptionOverflowError` when more than its limit is waiting,
    and redis-py's `ConnectionError` when the hub is closed under it, or `NoPermissionError`
    when Redis does not, or no longer, allow the channel.
    """

    __slots__ = (
        "_failure",
        "_marks_gaps",
        "_max_pending_bytes",
        "_payloads",
        "_pending_bytes",
        "_waiter",
    )

    def __init__(
        self, max_pending_bytes: int = DEFAULT_MAX_PENDING_BYTES, *, marks_gaps: bool = False
    ) -> None:
        self._marks_gaps = marks_gaps
        self._payloads: deque[Payload] = deque()
        self._pending_bytes = 0
        self._max_pending_bytes = max_pending_bytes
        self._waiter: asyncio.Future[None] | None = None
        self._failure: Exception | None = None

    def offer(self, payload: Payload) -> bool:
        """Queue a payload without waiting; False where that overflowed the queue."""
        if self._failure is not None:
            return True
        self._pending_bytes += len(payload) + PAYLOAD_OVERHEAD_BYTES
        if self._pending_bytes > self._max_pending_bytes:
            self.fail(SubscriptionOverflowError(f"over {self._max_pending_bytes} bytes waiting"))
            return False
        self._payloads.append(payload)
        self.wake()
        return True

    def mark_gap(self, gap: Gap) -> None:
        """Put a mark where payloads may be missing; nothing for a consumer that wants none."""
        # Two in a row say no more than one.
        if self._marks_gaps and not (self._payloads and isinstance(self._payloads[-1], Gap)):
            self.offer(gap)

    def fail(self, failure: Exception) -> None:
        """End the iteration with `failure`; what is still queued is given up."""
        if self._failure is None:
            self._failure = failure
            self._payloads.clear()
            self.wake()

    def wake(self) -> None:
        """Let the consumer look again at what it waits for."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def woken(self) -> None:
        """Wait for the next `wake`; raises what the subscription has failed with."""
        if self._failure is not None:
            raise self._failure
        if self._waiter is not None:
            raise RuntimeError("a subscription has one consumer, and it is waiting already")
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        if self._failure is not None:
            raise self._failure

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Payload:
        while not self._payloads:
            await self.woken()
        payload = self._payloads.popleft()
        self._pending_bytes -= len(payload) + PAYLOAD_OVERHEAD_BYTES
        return payload
