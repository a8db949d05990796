"""One subscription connection for a whole process, however many subscribers it has.

What always holds:

1. A subscriber's context is entered only after Redis has acknowledged the channel on the
   connection that is open now. A payload published after that reaches it.
2. A channel is subscribed on the wire if and only if somebody wants it: the first subscriber
   subscribes, the last one unsubscribes, and commands leave in the order in which that was
   decided. Nothing awaits between a decision and its command, so there is no lock.
3. The reader never waits for a subscriber: it hands over synchronously to bounded queues, and
   a queue that overflows ends its own subscription, nobody else's. So does a channel that an
   access list forbids.
4. A lost or silent connection is replaced, and all channels are subscribed again, for as long
   as the hub is open. The reader does not end in silence.
"""

import asyncio
import contextlib
import logging
import random
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from redis import exceptions

from huleedu_service_libs.payload import Payload
from huleedu_service_libs.redis_subscription_connection import (
    SUBSCRIBE,
    UNSUBSCRIBE,
    SubscriptionAddress,
    SubscriptionConnection,
)

logger = logging.getLogger(__name__)

DEFAULT_MAX_PENDING_BYTES: Final = 16 * 1024 * 1024
# What a queued payload costs beside its own bytes (CPython 3.11, by tracemalloc). Without it,
# empty payloads would pile up without a bound.
PAYLOAD_OVERHEAD_BYTES: Final = 280
RECONNECT_FIRST_DELAY_S: Final = 0.05
RECONNECT_MAX_DELAY_S: Final = 2.0
# A hung Redis is noticed after at most 1 + 1/4 of the timeout: a ping is due every quarter.
PINGS_PER_TIMEOUT: Final = 4


class SubscriptionOverflowError(Exception):
    """The subscriber took payloads more slowly than they came and its queue is full."""


@dataclass(frozen=True, slots=True)
class SubscriptionStatistics:
    """A snapshot of the hub; counts are since the hub was opened."""

    connected: bool
    channels: int
    subscriptions: int
    messages: int
    bytes: int
    overflows: int
    connections_opened: int
    silent_for_s: float | None
    """Seconds since the last byte from Redis; None while there is no connection."""


class Subscription:
    """An async iterator of the payloads of one channel, in the order of publication.

    For one consumer. Raises `SubscriptionOverflowError` when more than its limit is waiting,
    and redis-py's `ConnectionError` when the hub is closed under it, or `NoPermissionError`
    when Redis does not, or no longer, allow the channel.
    """

    __slots__ = ("_failure", "_max_pending_bytes", "_payloads", "_pending_bytes", "_waiter")

    def __init__(self, max_pending_bytes: int) -> None:
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


class _Channel:
    """One channel: who wants it, and whether the open connection has it."""

    __slots__ = ("acknowledged", "name", "refused", "subscriptions")

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.acknowledged = False
        self.refused = False
        self.subscriptions: set[Subscription] = set()

    @property
    def wanted(self) -> bool:
        return bool(self.subscriptions) and not self.refused

    def acknowledge(self) -> None:
        self.acknowledged = True
        for subscription in self.subscriptions:
            subscription.wake()

    def refuse(self, error: Exception) -> None:
        self.refused = True
        text = str(error)
        kind = (
            exceptions.NoPermissionError if text.startswith("NOPERM") else exceptions.ResponseError
        )
        for subscription in self.subscriptions:
            subscription.fail(kind(text))


class SubscriptionHub:
    """Shares one Redis connection among all subscribers of a process.

    An async context manager. The connection is opened when the first channel is wanted and
    kept from then on. `timeout_s` bounds connecting and an acknowledgement; a Redis that does
    not answer a ping for so long is given up and connected to anew.
    """

    def __init__(
        self,
        redis_url: str,
        *,
        client_name: str,
        timeout_s: float = 5.0,
        max_pending_bytes: int = DEFAULT_MAX_PENDING_BYTES,
        payload_type: type[Payload] = Payload,
    ) -> None:
        self._address = SubscriptionAddress(redis_url)
        self._client_name = client_name
        self._timeout_s = timeout_s
        self._max_pending_bytes = max_pending_bytes
        self._payload_type = payload_type
        self._channels: dict[bytes, _Channel] = {}
        self._connection: SubscriptionConnection | None = None
        self._wanted = asyncio.Event()
        self._supervisor: asyncio.Task[None] | None = None
        self._last_failure: Exception | None = None
        self._messages = 0
        self._bytes = 0
        self._overflows = 0
        self._connections_opened = 0

    async def __aenter__(self) -> Self:
        self._supervisor = asyncio.create_task(self._supervise(), name="redis-subscriptions")
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        supervisor, self._supervisor = self._supervisor, None
        for channel in self._channels.values():
            for subscription in channel.subscriptions:
                subscription.fail(exceptions.ConnectionError("the Redis client was stopped"))
        if supervisor is not None:
            supervisor.cancel()
            await asyncio.wait([supervisor])

    def open(self) -> None:
        """Connect now rather than when the first channel is wanted."""
        self._wanted.set()

    @contextlib.asynccontextmanager
    async def subscribe(self, channel: str) -> AsyncIterator[Subscription]:
        """Enter once Redis has acknowledged; leave to give the channel up.

        Raises redis-py's `TimeoutError` when no acknowledgement comes in time, also while the
        connection is being replaced, and `NoPermissionError` when an access list forbids the
        channel; RuntimeError while the hub is not open.
        """
        if self._supervisor is None:
            raise RuntimeError("the subscription hub is not open: enter it with `async with`")
        name = channel.encode()
        wanted = self._channels.get(name)
        if wanted is None or wanted.refused:
            wanted = self._channels[name] = _Channel(name)
            self._enqueue(SUBSCRIBE, wanted)
        subscription = Subscription(self._max_pending_bytes)
        wanted.subscriptions.add(subscription)
        try:
            await self._acknowledged(wanted, subscription)
            yield subscription
        finally:
            wanted.subscriptions.discard(subscription)
            # A refused channel may have been replaced by a new attempt.
            if not wanted.subscriptions and self._channels.get(name) is wanted:
                del self._channels[name]
                self._enqueue(UNSUBSCRIBE, wanted)

    async def _acknowledged(self, channel: _Channel, subscription: Subscription) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                while not channel.acknowledged:
                    await subscription.woken()
        except TimeoutError:
            reason = f" ({self._last_failure})" if self._last_failure else ""
            raise exceptions.TimeoutError(
                f"Redis did not acknowledge a subscription within {self._timeout_s:g} s{reason}"
            ) from self._last_failure

    def statistics(self) -> SubscriptionStatistics:
        """What the hub holds now and has done so far."""
        connection = self._connection
        return SubscriptionStatistics(
            connected=connection is not None,
            channels=len(self._channels),
            subscriptions=sum(len(c.subscriptions) for c in self._channels.values()),
            messages=self._messages,
            bytes=self._bytes,
            overflows=self._overflows,
            connections_opened=self._connections_opened,
            silent_for_s=(
                None
                if connection is None
                else asyncio.get_running_loop().time() - connection.last_heard
            ),
        )

    def _deliver(self, channel: bytes, data: bytes, now: float) -> None:
        self._messages += 1
        self._bytes += len(data)
        wanted = self._channels.get(channel)
        if wanted is None or not wanted.acknowledged:
            # The channel was given up and the UNSUBSCRIBE is on its way, perhaps with a new
            # SUBSCRIBE behind it: what comes before that one's acknowledgement is followed by a
            # gap, so its subscribers must not see it.
            return
        payload = self._payload_type(data)
        payload.received_at = now
        for subscription in wanted.subscriptions:
            if not subscription.offer(payload):
                self._overflows += 1

    def _enqueue(self, command: bytes, channel: _Channel) -> None:
        self._wanted.set()
        # Without a connection there is nothing to say: the next one starts from `_channels`.
        if self._connection is not None:
            self._connection.enqueue(command, channel)

    async def _supervise(self) -> None:
        await self._wanted.wait()
        loop = asyncio.get_running_loop()
        # A subscriber that arrives during the longest pause must still make its own timeout.
        max_delay_s = min(RECONNECT_MAX_DELAY_S, self._timeout_s / 2)
        delay_s = RECONNECT_FIRST_DELAY_S
        said = ""
        while True:
            started_at = loop.time()
            opened_before = self._connections_opened
            try:
                await self._serve_connection()
            except (OSError, exceptions.RedisError) as error:
                self._last_failure = error
                if str(error) != said:
                    # Once, however often the same attempt fails.
                    said = str(error)
                    logger.warning("no subscription connection to %s: %s", self._address, error)
            except Exception:
                # The last boundary of this task: whatever it is, subscribers must not go deaf.
                logger.exception("redis subscription reader failed; it starts again")
            opened = self._connections_opened > opened_before
            said = "" if opened else said
            if opened and loop.time() - started_at > RECONNECT_MAX_DELAY_S:
                # One that is lost right after it was opened counts as a failed attempt.
                delay_s = RECONNECT_FIRST_DELAY_S
            # Jitter: the processes of a fleet must not come back to Redis in step.
            await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))
            delay_s = min(delay_s * 2, max_delay_s)

    async def _serve_connection(self) -> None:
        """Connect, subscribe to all that is wanted, and return by raising why it ended."""
        connection: SubscriptionConnection | None = None
        try:
            try:
                async with asyncio.timeout(self._timeout_s):
                    connection = await self._address.connect(self._deliver)
                    await connection.handshake(self._address.arguments, self._client_name)
            except TimeoutError:
                raise exceptions.TimeoutError(
                    f"Redis did not answer within {self._timeout_s:g} s"
                ) from None
            self._connection = connection
            self._connections_opened += 1
            self._last_failure = None
            for channel in self._channels.values():
                if not channel.refused:
                    connection.enqueue(SUBSCRIBE, channel)
            logger.info("redis subscription connection open, %d channels", len(self._channels))
            await self._watch(connection)
        finally:
            self._connection = None
            for channel in self._channels.values():
                channel.acknowledged = False
            if connection is not None:
                connection.abort()
                await asyncio.wait([connection.lost])

    async def _watch(self, connection: SubscriptionConnection) -> None:
        """Ping until Redis leaves pings unanswered for too long or the connection is lost."""
        loop = asyncio.get_running_loop()
        interval_s = self._timeout_s / PINGS_PER_TIMEOUT
        while True:
            await asyncio.wait([connection.lost], timeout=interval_s)
            if connection.lost.done():
                raise connection.lost.result()
            # Counted from a ping, not from the last byte: a process that was itself held up
            # for long has asked nothing in the meantime and must not blame Redis for it.
            asked_at = connection.unheard_since
            if asked_at is not None and loop.time() - asked_at >= self._timeout_s:
                raise exceptions.TimeoutError(
                    f"Redis did not answer a ping within {self._timeout_s:g} s"
                )
            connection.ping()
