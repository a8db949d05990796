"""A Redis Cluster is rearranged, or loses a node, under traffic."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from huleedu_service_libs.redis_channels import hash_slot, user_channel
from huleedu_service_libs.redis_server import embedded_redis_server
from huleedu_service_libs.testing.redis_binaries import packaged_valkey_server
from huleedu_service_libs.testing.redis_cluster import RedisCluster
from tests.fault.peers import assert_nothing_went_wrong
from tests.fault.replication import is_replicated
from tests.fault.traffic import SETTINGS, Traffic, traffic
from tests.service_process import ServiceProcess

SERVERS = {
    "sharded channels": packaged_valkey_server,
    "channels on every node": embedded_redis_server,
}


@asynccontextmanager
async def served(
    binary: Path | None, *, replicas_per_master: int = 0
) -> AsyncIterator[tuple[RedisCluster, Traffic]]:
    """A Cluster of three masters, the service, and traffic through it."""
    async with (
        RedisCluster(binary, replicas_per_master=replicas_per_master) as cluster,
        ServiceProcess(cluster.url, settings=SETTINGS) as service,
    ):
        async with traffic(cluster.url, lambda: service.url) as going:
            yield cluster, going
        assert_nothing_went_wrong(service.output())


@pytest.mark.parametrize("server", SERVERS)
async def test_slots_move(server: str) -> None:
    """Users whose slots move to other nodes, there and back, miss nothing."""
    async with served(SERVERS[server]()) as (cluster, going):
        slots = [slot_of(user) for user in going.publishers]
        for _ in range(2):
            for slot in slots:
                owner = await cluster.node_of(slot)
                successor = cluster.nodes[cluster.nodes.index(owner) - 1]
                async with cluster.migrating(slot, successor):
                    await going.is_tried(3)
            await going.flows()
        figures = await going.finish()
        assert figures.nothing_missing, str(figures)


@pytest.mark.parametrize("server", SERVERS)
async def test_node_lost(server: str) -> None:
    """Where a replica has what its dead master had, tabs miss nothing."""
    async with served(SERVERS[server](), replicas_per_master=1) as (cluster, going):
        slot = slot_of(next(iter(going.publishers)))
        victim = await cluster.node_of(slot)
        # Replication is asynchronous: under traffic, the last few would be missing.
        await going.end()
        await going.is_even()
        await is_replicated(cluster.admin(victim))
        await victim.kill()
        going.resume()
        await cluster.successor(slot, victim)
        await going.flows()
        figures = await going.finish()
        assert figures.nothing_missing, str(figures)


@pytest.mark.parametrize("server", SERVERS)
async def test_node_lost_with_what_it_had(server: str) -> None:
    """Where a replica lacks what its dead master had, each tab concerned is told."""
    async with served(SERVERS[server](), replicas_per_master=1) as (cluster, going):
        slot = slot_of(next(iter(going.publishers)))
        victim = await cluster.node_of(slot)
        concerned = [
            tab for tab in going.ledger.tabs if await cluster.node_of(slot_of(tab.user)) is victim
        ]
        await cluster.cut_replication(victim)
        await going.is_acknowledged(20)
        await going.flows()
        await victim.kill()
        killed_at = going.ledger.now()
        await cluster.successor(slot, victim)
        await going.flows()
        assert all(tab.was_told(killed_at) for tab in concerned)
        figures = await going.finish()
        assert figures.flawless, str(figures)
        assert not figures.forgotten, str(figures)


def slot_of(user: str) -> int:
    """Where the user's channel and keys are."""
    return hash_slot(user_channel(user))
