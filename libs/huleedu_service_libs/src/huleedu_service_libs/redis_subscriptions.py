"""One subscription connection for a whole process, however many subscribers it has.

What always holds:

1. A subscriber's context is entered only after Redis has acknowledged the channel on the
   connection that is open now. A payload published after that reaches it.
2. The reader never waits for a subscriber; see `redis_subscription_link`, which also says how a
   connection is replaced.
"""

import asyncio
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import NoReturn, Self

from redis import exceptions

from huleedu_service_libs.payload import Payload
from huleedu_service_libs.redis_address import RedisAddress, Topology
from huleedu_service_libs.redis_cluster_survey import ClusterSurvey
from huleedu_service_libs.redis_sentinel import SentinelSet
from huleedu_service_libs.redis_subscription_canary import Canary, Publish
from huleedu_service_libs.redis_subscription_cluster import SubscriptionCluster
from huleedu_service_libs.redis_subscription_dialer import SubscriptionDialer
from huleedu_service_libs.redis_subscription_link import SubscriptionCounts, SubscriptionLink
from huleedu_service_libs.redis_subscription_peer import SentinelPeer, ServerPeer
from huleedu_service_libs.subscription import DEFAULT_MAX_PENDING_BYTES, Subscription


@dataclass(frozen=True, slots=True)
class SubscriptionStatistics:
    """A snapshot of the hub; counts are since the hub was opened."""

    connected: bool
    hears: bool
    """Whether a published canary came back lately, thus anything else would come too."""
    channels: int
    subscriptions: int
    messages: int
    bytes: int
    overflows: int
    connections_opened: int
    times_deaf: int
    """How often a connection was replaced that answered but did not bring the canary."""
    silent_for_s: float | None
    """Seconds since the last byte from Redis; None while there is no connection."""
    canary_age_s: float | None
    """Seconds since the last canary was heard; None before the first."""


class SubscriptionHub:
    """Shares one Redis connection among all subscribers of a process; on a Cluster a few.

    An async context manager. The connection is opened when the first channel is wanted and
    kept from then on. `timeout_s` bounds connecting and an acknowledgement; a Redis that does
    not answer a ping for so long, or does not send what `publish` has published, is given up
    and connected to anew. `spublish` publishes to the shard channels of a Cluster. `sentinels`
    are those that publishers ask too.
    """

    def __init__(
        self,
        address: RedisAddress,
        *,
        client_name: str,
        publish: Publish,
        spublish: Publish,
        sentinels: SentinelSet | None = None,
        timeout_s: float = 5.0,
        max_pending_bytes: int = DEFAULT_MAX_PENDING_BYTES,
        payload_type: type[Payload] = Payload,
    ) -> None:
        self._timeout_s = timeout_s
        self._max_pending_bytes = max_pending_bytes
        self._counts = SubscriptionCounts()
        dialer = SubscriptionDialer(address, client_name=client_name)
        open_link = partial(
            SubscriptionLink, counts=self._counts, timeout_s=timeout_s, payload_type=payload_type
        )
        canary = partial(Canary, publish=publish, timeout_s=timeout_s)
        self._carrier: SubscriptionLink | SubscriptionCluster
        match address.topology:
            case Topology.SERVER:
                self._carrier = open_link(ServerPeer(address, dialer, canary))
            case Topology.SENTINEL:
                sentinels = sentinels or SentinelSet(address)
                self._carrier = open_link(SentinelPeer(address, sentinels, dialer, canary))
            case Topology.CLUSTER:
                self._carrier = SubscriptionCluster(
                    ClusterSurvey(address, timeout_s=timeout_s),
                    dialer,
                    open_link,
                    canary=canary,
                    shard_canary=partial(Canary, publish=spublish, timeout_s=timeout_s),
                )
        self._running: asyncio.Task[NoReturn] | None = None

    async def __aenter__(self) -> Self:
        self._running = asyncio.create_task(self._carrier.run(), name="redis-subscriptions")
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        running, self._running = self._running, None
        self._carrier.close()
        if running is not None:
            running.cancel()
            await asyncio.wait([running])

    def open(self) -> None:
        """Connect now rather than when the first channel is wanted."""
        self._carrier.open()

    def subscribe(
        self, channel: str, *, mark_gaps: bool = False
    ) -> AbstractAsyncContextManager[Subscription]:
        """Enter once Redis has acknowledged; leave to give the channel up.

        With `mark_gaps` the subscription yields a `Gap` wherever payloads may be missing.

        Raises redis-py's `TimeoutError` when no acknowledgement comes in time, also while the
        connection is being replaced, and `NoPermissionError` when an access list forbids the
        channel; RuntimeError while the hub is not open.
        """
        subscription = Subscription(self._max_pending_bytes, marks_gaps=mark_gaps)
        return _Subscribing(self, channel.encode(), subscription)

    async def attach(self, name: bytes, subscription: Subscription) -> None:
        """What entering `subscribe` does; nothing is attached where it raises."""
        if self._running is None:
            raise RuntimeError("the subscription hub is not open: enter it with `async with`")
        self._carrier.attach(name, subscription)
        try:
            await self._acknowledged(name, subscription)
        except BaseException:
            self._carrier.detach(name, subscription)
            raise

    def detach(self, name: bytes, subscription: Subscription) -> None:
        """What leaving it does."""
        self._carrier.detach(name, subscription)

    async def _acknowledged(self, name: bytes, subscription: Subscription) -> None:
        if self._carrier.acknowledged(name):
            return
        try:
            async with asyncio.timeout(self._timeout_s):
                while not self._carrier.acknowledged(name):
                    await subscription.woken()
        except TimeoutError:
            failure = self._carrier.failure_of(name)
            reason = f" ({failure})" if failure else ""
            raise exceptions.TimeoutError(
                f"Redis did not acknowledge a subscription within {self._timeout_s:g} s{reason}"
            ) from failure

    @property
    def hears(self) -> bool:
        """As in the statistics, at next to no cost."""
        return self._carrier.hears

    def statistics(self) -> SubscriptionStatistics:
        """What the hub holds now and has done so far."""
        carrier, counts = self._carrier, self._counts
        return SubscriptionStatistics(
            connected=carrier.connected,
            hears=carrier.hears,
            channels=carrier.channels,
            subscriptions=carrier.subscriptions,
            messages=counts.messages,
            bytes=counts.bytes,
            overflows=counts.overflows,
            connections_opened=counts.connections_opened,
            times_deaf=counts.times_deaf,
            silent_for_s=carrier.silent_for_s,
            canary_age_s=carrier.canary_age_s,
        )


class _Subscribing:
    """What `SubscriptionHub.subscribe` returns.

    One is kept for each subscriber: a generator in its place would take 500 bytes more.
    """

    __slots__ = ("_hub", "_name", "_subscription")

    def __init__(self, hub: SubscriptionHub, name: bytes, subscription: Subscription) -> None:
        self._hub = hub
        self._name = name
        self._subscription = subscription

    async def __aenter__(self) -> Subscription:
        await self._hub.attach(self._name, self._subscription)
        return self._subscription

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._hub.detach(self._name, self._subscription)
