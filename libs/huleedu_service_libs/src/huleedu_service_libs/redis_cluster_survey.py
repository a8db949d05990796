"""Which node of a Redis Cluster serves which hash slot, by the word of its nodes."""

import asyncio
import bisect
import logging
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

from redis import exceptions

from huleedu_service_libs.redis_address import Endpoint, RedisAddress
from huleedu_service_libs.redis_lookups import ask, first_answer

logger = logging.getLogger(__name__)

INTERVAL_S: Final = 10.0
FIRST_DELAY_S: Final = 0.05
MAX_DELAY_S: Final = 1.0
UNKNOWN_HOST: Final = "?"


class SlotRange(NamedTuple):
    """Slots from `first` to `last`, both included, and who serves them."""

    first: int
    last: int
    master: Endpoint


@dataclass(frozen=True, slots=True)
class ClusterTopology:
    """A snapshot; a slot that nobody serves is in no range."""

    ranges: tuple[SlotRange, ...]
    """In the order of the slots."""
    nodes: frozenset[Endpoint]
    """Masters and replicas."""

    @property
    def masters(self) -> frozenset[Endpoint]:
        """Those that serve slots."""
        return frozenset(one.master for one in self.ranges)

    def master_of(self, slot: int) -> Endpoint | None:
        """Who serves the slot; None where nobody does."""
        index = bisect.bisect_left(self.ranges, slot, key=lambda one: one.last)
        if index == len(self.ranges) or slot < self.ranges[index].first:
            return None
        return self.ranges[index].master


class _View(NamedTuple):
    """What one node thinks, and how recent that is in the count of the Cluster."""

    epoch: int
    topology: ClusterTopology


class ClusterSurvey:
    """Asks the nodes of an address, and those that they have named, for the topology."""

    def __init__(self, address: RedisAddress, *, timeout_s: float) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._doubted = asyncio.Event()
        self.nodes = frozenset(address.endpoints)
        """All that may be asked."""
        self.latest = ClusterTopology((), frozenset())
        """The topology that was read last; an empty one before."""
        self.last_failure: Exception | None = None
        """Why the topology could not be read when it was due; None when it could."""

    def doubt(self) -> None:
        """Have it read soon: something was not where it was said to be."""
        self._doubted.set()

    async def follow(self) -> AsyncIterator[ClusterTopology]:
        """The topology, again and again: soon after a doubt, else every `INTERVAL_S` seconds."""
        delay_s = FIRST_DELAY_S
        while True:
            self._doubted.clear()
            try:
                self.latest = await self.topology()
            except (OSError, exceptions.RedisError) as error:
                if self.last_failure is None:
                    logger.warning("no topology of %s: %s", self._address, error)
                self.last_failure = error
                self._doubted.set()
            else:
                self.last_failure = None
                yield self.latest
            # However many doubts there are, and for however long: not in a rush, nor in step
            # with the rest of a fleet.
            await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))
            try:
                async with asyncio.timeout(INTERVAL_S):
                    await self._doubted.wait()
                delay_s = min(delay_s * 2, MAX_DELAY_S)
            except TimeoutError:
                delay_s = FIRST_DELAY_S

    async def topology(self) -> ClusterTopology:
        """What a node says that is in touch with the others, else the latest of what all say.

        A node that was cut off from the majority goes on naming itself as a master. Raises
        redis-py's `ConnectionError` with the reasons, `AuthenticationError` or `TimeoutError`,
        where no node answers.
        """
        cut_off: list[_View] = []
        try:
            topology = await self._ask_all(cut_off)
        except (exceptions.ConnectionError, exceptions.TimeoutError):
            if not cut_off:
                raise
            topology = max(cut_off, key=lambda view: view.epoch).topology
        self.nodes = topology.nodes | frozenset(self._address.endpoints)
        return topology

    async def _ask_all(self, cut_off: list[_View]) -> ClusterTopology:
        nodes = random.sample(sorted(self.nodes), len(self.nodes))
        attempts = {node: partial(self._ask, node, cut_off) for node in nodes}
        try:
            async with asyncio.timeout(self._timeout_s):
                return await first_answer(attempts, "no node tells who serves what")
        except TimeoutError:
            raise exceptions.TimeoutError(
                f"no node tells within {self._timeout_s:g} s who serves what"
            ) from None

    async def _ask(self, node: Endpoint, cut_off: list[_View]) -> ClusterTopology:
        text, slots = await ask(
            self._address.connection(node), ["CLUSTER", "INFO"], ["CLUSTER", "SLOTS"]
        )
        info = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        topology = _parse_slots(slots, node)
        if info["cluster_state"] != "ok" or not topology.ranges:
            cut_off.append(_View(int(info["cluster_current_epoch"]), topology))
            raise exceptions.ConnectionError("says that the Cluster is down")
        return topology


def _parse_slots(slots: list[Any], asked: Endpoint) -> ClusterTopology:
    ranges = []
    nodes = set()
    for first, last, *servers in slots:
        # A node that does not know an address, or is to tell none, means that of the one asked.
        found = [
            Endpoint(host if host and host != UNKNOWN_HOST else asked.host, port)
            for host, port, *_ in servers
        ]
        ranges.append(SlotRange(first, last, found[0]))
        nodes.update(found)
    return ClusterTopology(tuple(sorted(ranges)), frozenset(nodes))
