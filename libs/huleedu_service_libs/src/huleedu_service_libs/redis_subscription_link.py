"""One Redis connection that carries channels, and is replaced whenever it is lost or deaf.

What always holds:

1. A channel is subscribed on the wire if and only if somebody wants it: the first subscriber
   subscribes, the last one unsubscribes, and commands leave in the order in which that was
   decided. Nothing awaits between a decision and its command, so there is no lock.
2. Payloads are handed over synchronously to bounded queues, and a queue that overflows ends its
   own subscription, nobody else's. So does a channel that an access list forbids.
3. A connection that is lost, leaves pings unanswered or does not bring the canary is given up,
   and all channels are subscribed on the next one, for as long as the link runs. It does not
   end in silence, and a subscriber that asked for it finds a `Gap` among its payloads, ahead of
   the first one that came after the loss.
4. The canary is the last to be subscribed on a new connection: once it is heard, so is all else.
"""

import asyncio
import logging
import random
from dataclasses import dataclass
from typing import Any, Final, NoReturn, Protocol

from redis import exceptions

from huleedu_service_libs.payload import Payload
from huleedu_service_libs.redis_subscription_canary import (
    CANARY_PREFIX,
    Canary,
    DeafConnectionError,
)
from huleedu_service_libs.redis_subscription_channel import Channel
from huleedu_service_libs.redis_subscription_connection import (
    Deliver,
    SubscriptionConnection,
    Withdraw,
)
from huleedu_service_libs.subscription import Subscription

logger = logging.getLogger(__name__)

RECONNECT_FIRST_DELAY_S: Final = 0.05
RECONNECT_MAX_DELAY_S: Final = 2.0
# A hung Redis is noticed after at most 1 + 1/4 of the timeout: a ping is due every quarter.
PINGS_PER_TIMEOUT: Final = 4


class Peer(Protocol):
    """The other end of a link; `str()` of it is for the log."""

    async def connect(self, deliver: Deliver, withdraw: Withdraw) -> SubscriptionConnection:
        """A connection with its handshake done; raises OSError or redis-py's exceptions."""
        ...

    def canary(self) -> Canary | None:
        """For the connection that was opened last; None where there is nothing to prove."""
        ...

    def doubt(self) -> None:
        """The connection was lost, or the server has not got a channel."""
        ...


@dataclass(slots=True)
class SubscriptionCounts:
    """What the links of a process have done together since the beginning."""

    messages: int = 0
    bytes: int = 0
    overflows: int = 0
    connections_opened: int = 0
    times_deaf: int = 0


class SubscriptionLink:
    """Keeps one connection open and carries channels over it.

    It does so while `run()` is awaited, from the moment at which the first channel is wanted.
    `timeout_s` bounds connecting and the answer to a ping.
    """

    def __init__(
        self,
        peer: Peer,
        counts: SubscriptionCounts,
        *,
        timeout_s: float,
        payload_type: type[Payload],
    ) -> None:
        self._peer = peer
        self._counts = counts
        self._timeout_s = timeout_s
        self._payload_type = payload_type
        self._channels: dict[bytes, Channel] = {}
        self._misplaced: set[bytes] = set()
        self._connection: SubscriptionConnection | None = None
        self._canary: Canary | None = None
        self._canary_heard_at: float | None = None
        self._opened_at = float("-inf")
        self._is_proven = False
        self._is_provable = True
        self._wanted = asyncio.Event()
        self._said = set[str]()
        self._failure: Exception | None = None

    def open(self) -> None:
        """Connect now rather than when the first channel is wanted."""
        self._wanted.set()

    def attach(self, name: bytes, subscription: Subscription) -> None:
        """Offer to `subscription` what comes on the channel; wakes it once anything can come."""
        channel = self._channels.get(name)
        if channel is None or channel.refused:
            channel = Channel(name)
            self.adopt(channel)
        channel.subscriptions.add(subscription)

    def detach(self, name: bytes, subscription: Subscription) -> None:
        """Undo `attach`; the last one unsubscribes the channel."""
        channel = self._channels.get(name)
        # Of a refused channel there may be a new attempt, which is other people's.
        if channel is not None and subscription in channel.subscriptions:
            channel.subscriptions.discard(subscription)
            if not channel.subscriptions:
                self._give_up(channel)

    def adopt(self, channel: Channel) -> None:
        """Carry a channel that no link carries now."""
        self._channels[channel.name] = channel
        self._wanted.set()
        # Without a connection there is nothing to say: the next one starts from `_channels`.
        if self._connection is not None:
            self._connection.subscribe(channel)

    def release(self, name: bytes) -> Channel:
        """Carry the channel no longer; what is returned is for another link to adopt."""
        channel = self._channels[name]
        self._give_up(channel)
        return channel.moved()

    def _give_up(self, channel: Channel) -> None:
        del self._channels[channel.name]
        self._misplaced.discard(channel.name)
        if self._connection is not None:
            self._connection.unsubscribe(channel)

    def try_again(self) -> None:
        """Subscribe once more what the server had not got."""
        misplaced, self._misplaced = self._misplaced, set()
        if self._connection is not None:
            for name in misplaced:
                self._connection.subscribe(self._channels[name])

    @property
    def names(self) -> list[bytes]:
        """The channels that it carries."""
        return list(self._channels)

    def acknowledged(self, name: bytes) -> bool:
        """Whether Redis sends on the open connection what is published to the channel."""
        channel = self._channels.get(name)
        return channel is not None and channel.acknowledged

    def failure_of(self, _name: bytes) -> Exception | None:
        """Why the channel has no acknowledgement, if that is known."""
        return self._failure

    @property
    def connected(self) -> bool:
        """Whether there is a connection."""
        return self._connection is not None

    @property
    def silent_for_s(self) -> float | None:
        """Seconds since the last byte from Redis; None while there is no connection."""
        return None if self._connection is None else _seconds_since(self._connection.last_heard)

    @property
    def canary_age_s(self) -> float | None:
        """Seconds since a canary was heard; None before the first one."""
        return None if self._canary_heard_at is None else _seconds_since(self._canary_heard_at)

    @property
    def hears(self) -> bool:
        """Whether what is published now would come: a canary came over this connection lately.

        Where Redis allows no canary, an answer to a ping has to do.
        """
        if self._is_provable:
            proof_age_s = self.canary_age_s if self._is_proven else None
        else:
            proof_age_s = self.silent_for_s
        return proof_age_s is not None and proof_age_s < self._timeout_s

    @property
    def channels(self) -> int:
        """How many channels are wanted."""
        return len(self._channels)

    @property
    def subscriptions(self) -> int:
        """How many subscribers want them."""
        return sum(len(channel.subscriptions) for channel in self._channels.values())

    def close(self) -> None:
        """Fail all subscribers; for a link that runs no longer."""
        for channel in self._channels.values():
            for subscription in channel.subscriptions:
                subscription.fail(exceptions.ConnectionError("the Redis client was stopped"))

    def _deliver(self, name: bytes, data: bytes, now: float) -> None:
        channel = self._channels.get(name)
        if channel is None or not channel.acknowledged:
            # The canary's channel is not among them, so that it costs the others nothing.
            if self._canary is not None and name == self._canary.name:
                self._canary.hear(data)
                self._canary_heard_at = now
                self._is_proven = True
                self._said.clear()
            # Else it was given up and the UNSUBSCRIBE is on its way, perhaps with a new SUBSCRIBE
            # behind it: what comes before that one's acknowledgement is followed by a gap, so
            # its subscribers must not see it.
            return
        counts = self._counts
        counts.messages += 1
        counts.bytes += len(data)
        payload = self._payload_type(data)
        payload.received_at = now
        for subscription in channel.subscriptions:
            if not subscription.offer(payload):
                counts.overflows += 1

    def _withdraw(self, name: bytes) -> None:
        channel = self._channels.get(name)
        if channel is not None:
            channel.lose()
            self._misplaced.add(name)
            self._peer.doubt()
        elif self._canary is not None and name == self._canary.name:
            self._canary.withdraw()
            self._peer.doubt()

    async def run(self) -> NoReturn:
        """Connect, and connect anew whenever the connection is lost."""
        await self._wanted.wait()
        loop = asyncio.get_running_loop()
        # A subscriber that arrives during the longest pause must still make its own timeout.
        max_delay_s = min(RECONNECT_MAX_DELAY_S, self._timeout_s / 2)
        delay_s = RECONNECT_FIRST_DELAY_S
        while True:
            started_at = loop.time()
            try:
                await self._serve_connection()
            except (OSError, exceptions.RedisError) as error:
                self._ended(error)
            except Exception:
                # The last boundary of this task: whatever it is, subscribers must not go deaf.
                logger.exception("redis subscription reader failed; it starts again")
            self._peer.doubt()
            lasted_s = loop.time() - started_at
            if self._opened_at >= started_at and lasted_s > RECONNECT_MAX_DELAY_S:
                # One that is lost right after it was opened counts as a failed attempt.
                delay_s = RECONNECT_FIRST_DELAY_S
            # Jitter: the processes of a fleet must not come back to Redis in step.
            await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))
            delay_s = min(delay_s * 2, max_delay_s)

    def _ended(self, error: Exception) -> None:
        self._failure = error
        if isinstance(error, DeafConnectionError):
            self._counts.times_deaf += 1
        # Once, however often the same happens, until it is proven to be over.
        if str(error) not in self._said:
            self._said.add(str(error))
            logger.warning("no subscription connection to %s: %s", self._peer, error)

    async def _serve_connection(self) -> NoReturn:
        """Connect, subscribe to all that is wanted, and end by raising why it ended."""
        try:
            async with asyncio.timeout(self._timeout_s):
                connection = await self._peer.connect(self._deliver, self._withdraw)
        except TimeoutError:
            raise exceptions.TimeoutError(
                f"Redis did not answer within {self._timeout_s:g} s"
            ) from None
        try:
            self._connection = connection
            self._is_proven, self._is_provable = False, True
            self._opened_at = asyncio.get_running_loop().time()
            self._counts.connections_opened += 1
            self._failure = None
            for channel in self._channels.values():
                if not channel.refused:
                    connection.subscribe(channel)
            logger.info(
                "subscription connection to %s open, %d channels", self._peer, len(self._channels)
            )
            await self._watch(connection)
        finally:
            self._connection = self._canary = None
            self._is_proven, self._is_provable = False, True
            self._misplaced.clear()
            for channel in self._channels.values():
                channel.lose()
            await connection.close()

    async def _watch(self, connection: SubscriptionConnection) -> NoReturn:
        """Ping until pings stay unanswered for too long, or the connection is lost or deaf."""
        loop = asyncio.get_running_loop()
        interval_s = self._timeout_s / PINGS_PER_TIMEOUT
        proof = asyncio.create_task(self._prove(connection), name="redis-canary")
        try:
            pending: set[asyncio.Future[Any]] = {connection.lost, proof}
            while True:
                done, pending = await asyncio.wait(
                    pending, timeout=interval_s, return_when=asyncio.FIRST_COMPLETED
                )
                if connection.lost in done:
                    raise connection.lost.result()
                if proof in done:
                    proof.result()
                # Counted from a ping, not from the last byte: a process that was itself held up
                # for long has asked nothing in the meantime and must not blame Redis for it.
                asked_at = connection.unheard_since
                if asked_at is not None and loop.time() - asked_at >= self._timeout_s:
                    raise exceptions.TimeoutError(
                        f"Redis did not answer a ping within {self._timeout_s:g} s"
                    )
                connection.ping()
        finally:
            proof.cancel()
            await asyncio.gather(proof, return_exceptions=True)

    async def _prove(self, connection: SubscriptionConnection) -> None:
        while (canary := self._peer.canary()) is not None:
            self._canary = canary
            connection.subscribe(canary)
            await canary.prove(connection)
            if canary.refusal is not None:
                logger.warning(
                    "a deaf connection to %s would not be noticed, an access list should allow "
                    "%s*: %s",
                    self._peer,
                    CANARY_PREFIX,
                    canary.refusal,
                )
                break
            # Its slot has moved. Where the next one has to be is soon known.
            await asyncio.sleep(RECONNECT_FIRST_DELAY_S)
        self._is_provable = False
        self._said.clear()


def _seconds_since(loop_time: float) -> float:
    return asyncio.get_running_loop().time() - loop_time
