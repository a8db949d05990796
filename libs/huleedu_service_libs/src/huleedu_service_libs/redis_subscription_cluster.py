"""The links of one process into a Redis Cluster: one to any node, and one to each master.

What always holds:

1. Each channel is on the link to any node, since what PUBLISH publishes on one node comes to
   every other; and on the link to the master of its slot, where SPUBLISH publishes. While
   nobody is known to serve its slot, it waits.
2. The links follow the topology, which is read anew whenever a link was lost or did not find a
   channel where it was said to be, and from time to time.
3. A channel that changes its link has not been heard in between: its subscribers get a `Gap`.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final, NamedTuple, NoReturn

from huleedu_service_libs.redis_address import Endpoint
from huleedu_service_libs.redis_channels import hash_slot
from huleedu_service_libs.redis_cluster_survey import ClusterSurvey, ClusterTopology
from huleedu_service_libs.redis_subscription_channel import Channel
from huleedu_service_libs.redis_subscription_dialer import SubscriptionDialer
from huleedu_service_libs.redis_subscription_link import Peer, SubscriptionLink
from huleedu_service_libs.redis_subscription_peer import MakeCanary, MasterPeer, NodePeer
from huleedu_service_libs.subscription import Subscription

logger = logging.getLogger(__name__)

PAUSE_AFTER_DEFECT_S: Final = 1.0


class _Shard(NamedTuple):
    link: SubscriptionLink
    running: asyncio.Task[NoReturn]


class SubscriptionCluster:
    """Carries channels over several links, as `SubscriptionLink` does over one.

    `canary` makes those of the link to any node, `shard_canary` those of the others.
    """

    def __init__(
        self,
        survey: ClusterSurvey,
        dialer: SubscriptionDialer,
        open_link: Callable[[Peer], SubscriptionLink],
        *,
        canary: MakeCanary,
        shard_canary: MakeCanary,
    ) -> None:
        self._survey = survey
        self._dialer = dialer
        self._open_link = open_link
        self._shard_canary = shard_canary
        self._classic = open_link(NodePeer(survey, dialer, canary))
        self._shards = dict[Endpoint, _Shard]()
        self._topology = survey.latest
        self._waiting: dict[bytes, Channel] = {}
        self._wanted = asyncio.Event()

    def open(self) -> None:
        """Connect now rather than when the first channel is wanted."""
        self._classic.open()
        self._wanted.set()

    def attach(self, name: bytes, subscription: Subscription) -> None:
        """Offer to `subscription` what comes on the channel; wakes it once anything can come."""
        self._wanted.set()
        self._classic.attach(name, subscription)
        link = self._link_of(name)
        if link is not None:
            link.attach(name, subscription)
        else:
            self._waiting.setdefault(name, Channel(name)).subscriptions.add(subscription)
            self._survey.doubt()

    def detach(self, name: bytes, subscription: Subscription) -> None:
        """Undo `attach`; the last one unsubscribes the channel."""
        self._classic.detach(name, subscription)
        link = self._link_of(name)
        if link is not None:
            link.detach(name, subscription)
        else:
            channel = self._waiting[name]
            channel.subscriptions.discard(subscription)
            if not channel.subscriptions:
                del self._waiting[name]

    def _link_of(self, name: bytes) -> SubscriptionLink | None:
        master = self._topology.master_of(hash_slot(name.decode()))
        return None if master is None else self._shards[master].link

    def acknowledged(self, name: bytes) -> bool:
        """Whether Redis sends on both links what is published to the channel."""
        link = self._link_of(name)
        return link is not None and link.acknowledged(name) and self._classic.acknowledged(name)

    def failure_of(self, name: bytes) -> Exception | None:
        """Why the channel has no acknowledgement, if that is known."""
        link = self._link_of(name)
        failure = self._survey.last_failure if link is None else link.failure_of(name)
        return failure or self._classic.failure_of(name)

    @property
    def _links(self) -> list[SubscriptionLink]:
        return [self._classic, *(shard.link for shard in self._shards.values())]

    @property
    def connected(self) -> bool:
        """Whether all links have a connection."""
        return bool(self._shards) and all(link.connected for link in self._links)

    @property
    def hears(self) -> bool:
        """Whether what is published now would come, over whichever link."""
        return bool(self._shards) and all(link.hears for link in self._links)

    @property
    def silent_for_s(self) -> float | None:
        """Seconds since the last byte on the link that is silent longest; None without one."""
        silences_s = [link.silent_for_s for link in self._links]
        known_s = [silence_s for silence_s in silences_s if silence_s is not None]
        return max(known_s) if len(known_s) == len(silences_s) else None

    @property
    def canary_age_s(self) -> float | None:
        """Seconds since a canary was heard, on the link where that is longest ago."""
        ages_s = [link.canary_age_s for link in self._links]
        return max((age_s for age_s in ages_s if age_s is not None), default=None)

    @property
    def channels(self) -> int:
        """How many channels are wanted."""
        return self._classic.channels

    @property
    def subscriptions(self) -> int:
        """How many subscribers want them."""
        return self._classic.subscriptions

    def close(self) -> None:
        """Fail all subscribers; for links that run no longer."""
        # Every channel is on it.
        self._classic.close()

    async def run(self) -> NoReturn:
        """Follow the topology, and keep every link connected."""
        await self._wanted.wait()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._classic.run(), name="redis-subscriptions")
            while True:
                try:
                    async for topology in self._survey.follow():
                        self._apply(topology, tasks)
                except Exception:
                    # The last boundary of this task: subscribers must not go deaf, whatever it is.
                    logger.exception("following the topology failed; it starts again")
                    await asyncio.sleep(PAUSE_AFTER_DEFECT_S)

    def _apply(self, topology: ClusterTopology, tasks: asyncio.TaskGroup) -> None:
        for endpoint in topology.masters - self._shards.keys():
            link = self._open_link(
                MasterPeer(endpoint, self._survey, self._dialer, self._shard_canary)
            )
            link.open()
            name = f"redis-subscriptions-{endpoint}"
            self._shards[endpoint] = _Shard(link, tasks.create_task(link.run(), name=name))
        if topology != self._topology:
            self._topology = topology
            self._rearrange()
        for endpoint in self._shards.keys() - topology.masters:
            self._shards.pop(endpoint).running.cancel()
        for shard in self._shards.values():
            shard.link.try_again()
        if self._waiting:
            self._survey.doubt()

    def _rearrange(self) -> None:
        moved, self._waiting = list(self._waiting.values()), {}
        for shard in self._shards.values():
            link = shard.link
            moved += [link.release(name) for name in link.names if self._link_of(name) is not link]
        for channel in moved:
            new_link = self._link_of(channel.name)
            if new_link is None:
                self._waiting[channel.name] = channel
            else:
                new_link.adopt(channel)
