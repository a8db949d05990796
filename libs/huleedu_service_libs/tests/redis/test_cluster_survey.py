"""What a process finds out about who serves what in a Redis Cluster."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest
from redis import exceptions

from huleedu_service_libs.redis_address import Endpoint, RedisAddress
from huleedu_service_libs.redis_cluster_survey import ClusterSurvey
from huleedu_service_libs.redis_server import RedisServer
from huleedu_service_libs.testing.polling import until
from huleedu_service_libs.testing.redis_cluster import SLOTS, RedisCluster

if TYPE_CHECKING:
    from pathlib import Path


def survey(*nodes: RedisServer, credentials: str = "", timeout_s: float = 20) -> ClusterSurvey:
    hosts = ",".join(f"127.0.0.1:{node.port}" for node in nodes)
    address = RedisAddress.parse(f"redis+cluster://{credentials}{hosts}")
    return ClusterSurvey(address, timeout_s=timeout_s)


def endpoint(node: RedisServer) -> Endpoint:
    return Endpoint("127.0.0.1", node.port)


async def test_who_serves_what(redis_binary: Path) -> None:
    """One node is enough to learn of all others and of who serves each slot."""
    async with RedisCluster(redis_binary, replicas_per_master=1) as cluster:
        for node in cluster.nodes:
            asking = survey(node)

            # Nodes do not name replicas that have not replicated anything yet.
            async def names_all(asking: ClusterSurvey = asking) -> bool:
                return (await asking.topology()).nodes == {endpoint(one) for one in cluster.nodes}

            await until(names_all)
            topology = await asking.topology()
            assert topology.masters == {endpoint(one) for one in cluster.nodes[:3]}
            for slot in (0, 5460, 5461, 10922, 10923, SLOTS - 1):
                assert topology.master_of(slot) == endpoint(await cluster.node_of(slot))


async def test_slot_that_nobody_serves() -> None:
    """Of a slot that no node has, none is named, though the Cluster is down for want of it."""
    async with RedisCluster() as cluster:
        for node in cluster.nodes:
            for slot in (0, 7, SLOTS - 1):
                await cluster.admin(node).ask("CLUSTER", "DELSLOTS", slot)
        topology = await survey(*cluster.nodes).topology()
        assert [topology.master_of(slot) for slot in (0, 7, SLOTS - 1)] == [None] * 3
        assert topology.master_of(6) == topology.master_of(1) == endpoint(cluster.nodes[0])
        assert topology.master_of(SLOTS - 2) == endpoint(cluster.nodes[2])


async def test_node_that_is_cut_off() -> None:
    """A node that is not in touch with the others is not believed as long as another answers."""
    async with (
        RedisCluster() as cluster,
        RedisCluster(masters=1) as empty_cluster,
    ):
        (lonely,) = empty_cluster.nodes
        await empty_cluster.admin(lonely).ask("CLUSTER", "FLUSHSLOTS")
        # They are asked in random order.
        for _ in range(20):
            asking = survey(lonely, cluster.nodes[0])
            topology = await asking.topology()
            assert topology.masters == {endpoint(node) for node in cluster.nodes}
            assert asking.nodes == {endpoint(node) for node in (lonely, *cluster.nodes)}
        assert (await survey(lonely).topology()).masters == frozenset()


async def test_nobody_answers() -> None:
    """Where no node answers, the reasons are told."""
    async with RedisCluster() as cluster:
        for node in cluster.nodes[:2]:
            await node.kill()
        with pytest.raises(
            exceptions.ConnectionError, match=r"no node tells .* Connect call failed"
        ):
            await survey(*cluster.nodes[:2]).topology()
        cluster.nodes[2].signal(signal.SIGSTOP)
        with pytest.raises(exceptions.TimeoutError, match=r"no node tells within 0.2 s"):
            await survey(*cluster.nodes, timeout_s=0.2).topology()


async def test_no_cluster() -> None:
    """A server that is no node of a Cluster, or wants a password, is named with its reason."""
    async with RedisServer() as plain, RedisServer(options={"requirepass": "s3cret"}) as locked:
        with pytest.raises(exceptions.ConnectionError, match="cluster support disabled"):
            await survey(plain).topology()
        with pytest.raises(exceptions.AuthenticationError) as refused:
            await survey(plain, locked, credentials="nobody:wr0ng@").topology()
        assert "wr0ng" not in str(refused.value)
