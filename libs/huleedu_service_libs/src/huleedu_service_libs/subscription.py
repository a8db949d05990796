"""What one subscriber of a channel has been given and has not taken yet."""

import asyncio
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

    For one consumer, which takes them one by one or, cheaper, all that wait with `next_batch`.
    Both raise `SubscriptionOverflowError` when more than its limit is waiting, and redis-py's
    `ConnectionError` when the hub is closed under it, or `NoPermissionError` when Redis does
    not, or no longer, allow the channel.
    """

    __slots__ = (
        "_failure",
        "_marks_gaps",
        "_max_pending_bytes",
        "_payloads",
        "_pending_bytes",
        "_taken",
        "_waiter",
    )

    def __init__(
        self, max_pending_bytes: int = DEFAULT_MAX_PENDING_BYTES, *, marks_gaps: bool = False
    ) -> None:
        self._marks_gaps = marks_gaps
        # Lists, since an empty deque takes 600 bytes more.
        self._payloads: list[Payload] = []
        # By the iterator, which gives out the last one next.
        self._taken: list[Payload] = []
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
        if self._waiter is not None:
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
            self._taken.clear()
            self.wake()

    def wake(self) -> None:
        """Let the consumer look again at what it waits for."""
        waiter, self._waiter = self._waiter, None
        # It may have been cancelled.
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def woken(self) -> asyncio.Future[None]:
        """Done at the next `wake`; raises what the subscription has failed with before."""
        if self._failure is not None:
            raise self._failure
        if self._waiter is not None and not self._waiter.done():
            raise RuntimeError("a subscription has one consumer, and it is waiting already")
        self._waiter = asyncio.get_running_loop().create_future()
        return self._waiter

    async def next_batch(self) -> list[Payload]:
        """All that waits, at least one payload, in order."""
        while not (self._payloads or self._taken):
            await self.woken()
        batch, self._payloads = self._payloads, []
        if self._taken:
            batch = [*reversed(self._taken), *batch]
            self._taken.clear()
        self._pending_bytes = 0
        return batch

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Payload:
        if not self._taken:
            while not self._payloads:
                await self.woken()
            self._payloads.reverse()
            self._taken, self._payloads = self._payloads, self._taken
        payload = self._taken.pop()
        self._pending_bytes -= len(payload) + PAYLOAD_OVERHEAD_BYTES
        return payload
