"""The servers that links talk to: one Redis, the master of a Sentinel set, a Cluster's nodes."""

import random
from collections.abc import Callable
from typing import Final

from huleedu_service_libs.redis_address import Endpoint, RedisAddress
from huleedu_service_libs.redis_channels import hash_slot
from huleedu_service_libs.redis_cluster_survey import ClusterSurvey
from huleedu_service_libs.redis_sentinel import SentinelSet
from huleedu_service_libs.redis_subscription_canary import Canary, canary_channel
from huleedu_service_libs.redis_subscription_connection import (
    CLASSIC,
    SHARDED,
    Deliver,
    SubscriptionConnection,
    Withdraw,
)
from huleedu_service_libs.redis_subscription_dialer import SubscriptionDialer

MakeCanary = Callable[[str], Canary]
"""Takes the channel."""

# Enough to find a master that serves a single slot, save for one time in 400.
CANARY_ATTEMPTS: Final = 100_000


class ServerPeer:
    """The server at an address of one."""

    def __init__(
        self, address: RedisAddress, dialer: SubscriptionDialer, make_canary: MakeCanary
    ) -> None:
        self._address = address
        self._dialer = dialer
        self._make_canary = make_canary

    def __str__(self) -> str:
        return str(self._address)

    async def connect(self, deliver: Deliver, withdraw: Withdraw) -> SubscriptionConnection:
        endpoint = None if self._address.is_unix_socket else self._address.endpoints[0]
        return await self._dialer.dial(endpoint, CLASSIC, deliver, withdraw)

    def canary(self) -> Canary:
        return self._make_canary(canary_channel())

    def doubt(self) -> None:
        """There is no other server."""


class SentinelPeer:
    """The server that the sentinels name as the master, anew for each connection."""

    def __init__(
        self,
        address: RedisAddress,
        sentinels: SentinelSet,
        dialer: SubscriptionDialer,
        make_canary: MakeCanary,
    ) -> None:
        self._address = address
        self._sentinels = sentinels
        self._dialer = dialer
        self._make_canary = make_canary

    def __str__(self) -> str:
        return str(self._address)

    async def connect(self, deliver: Deliver, withdraw: Withdraw) -> SubscriptionConnection:
        master = await self._sentinels.master()
        return await self._dialer.dial(master, CLASSIC, deliver, withdraw)

    def canary(self) -> Canary:
        return self._make_canary(canary_channel())

    def doubt(self) -> None:
        self._sentinels.doubt()


class NodePeer:
    """Any node of a Cluster, another one for each connection: it brings what PUBLISH publishes."""

    def __init__(
        self, survey: ClusterSurvey, dialer: SubscriptionDialer, make_canary: MakeCanary
    ) -> None:
        self._survey = survey
        self._dialer = dialer
        self._make_canary = make_canary
        self._untried: list[Endpoint] = []
        self._node: Endpoint | None = None

    def __str__(self) -> str:
        return f"{self._node}, for the whole Cluster"

    async def connect(self, deliver: Deliver, withdraw: Withdraw) -> SubscriptionConnection:
        if not self._untried:
            self._untried = random.sample(sorted(self._survey.nodes), len(self._survey.nodes))
        self._node = self._untried.pop()
        return await self._dialer.dial(self._node, CLASSIC, deliver, withdraw)

    def canary(self) -> Canary:
        # One that is published on this node itself would prove nothing of the others.
        topology = self._survey.latest
        others = topology.masters - {self._node}
        return self._make_canary(
            _canary_channel(lambda slot: not others or topology.master_of(slot) in others)
        )

    def doubt(self) -> None:
        self._survey.doubt()


class MasterPeer:
    """One master of a Cluster: it brings what SPUBLISH publishes to the slots that it serves."""

    def __init__(
        self,
        endpoint: Endpoint,
        survey: ClusterSurvey,
        dialer: SubscriptionDialer,
        make_canary: MakeCanary,
    ) -> None:
        self._endpoint = endpoint
        self._survey = survey
        self._dialer = dialer
        self._make_canary = make_canary
        self._served = False

    def __str__(self) -> str:
        return f"{self._endpoint}, for its slots"

    async def connect(self, deliver: Deliver, withdraw: Withdraw) -> SubscriptionConnection:
        connection = await self._dialer.dial(self._endpoint, SHARDED, deliver, withdraw)
        self._served = connection.served
        return connection

    def canary(self) -> Canary | None:
        if not self._served:
            return None
        topology = self._survey.latest
        return self._make_canary(
            _canary_channel(lambda slot: topology.master_of(slot) == self._endpoint)
        )

    def doubt(self) -> None:
        self._survey.doubt()


def _canary_channel(accepts_slot: Callable[[int], bool]) -> str:
    channel = canary_channel()
    for number in range(CANARY_ATTEMPTS):
        candidate = f"{channel}-{number}"
        if accepts_slot(hash_slot(candidate)):
            return candidate
    return channel
