from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from redis.crc import key_slot
from redis.exceptions import ResponseError

from huleedu_service_libs.testing.polling import until
from huleedu_service_libs.testing.redis_cluster import KEYS_PER_MIGRATE, RedisCluster

if TYPE_CHECKING:
    from pathlib import Path

SLOT = key_slot(b"k")


async def test_slots(redis_binary: Path) -> None:
    """Every slot has its node, and a slot moves with its keys, step by step or at once."""
    async with RedisCluster(redis_binary) as cluster:
        source = await cluster.node_of(SLOT)
        assert {await cluster.node_of(slot) for slot in (0, 8192, 16383)} == set(cluster.nodes)
        target = next(node for node in cluster.nodes if node is not source)
        at_source, at_target = cluster.admin(source), cluster.admin(target)
        many = KEYS_PER_MIGRATE + 1
        await at_source.mset({f"{{k}}{number}": "v" for number in range(many)})

        async with cluster.migrating(SLOT, target):
            with pytest.raises(ResponseError, match=f"^ASK {SLOT} 127.0.0.1:{target.port}|^{SLOT}"):
                await at_source.get("{k}new")
            assert await at_source.get("{k}0") == "v"
            await cluster.move_keys(SLOT, target)
            with pytest.raises(ResponseError):
                await at_source.get("{k}0")
        assert await cluster.node_of(SLOT) is target
        assert await at_target.dbsize() == many

        await cluster.migrate(SLOT, source)
        assert await cluster.node_of(SLOT) is source
        assert (await at_source.dbsize(), await at_target.dbsize()) == (many, 0)
        with pytest.raises(LookupError, match="16384"):
            await cluster.node_of(16384)


async def test_failover_that_loses_writes(redis_binary: Path) -> None:
    """A lagging replica takes over from a killed master, which comes back as its replica."""
    passwords = {"requirepass": "s3cret", "masterauth": "s3cret"}
    async with RedisCluster(redis_binary, replicas_per_master=1, options=passwords) as cluster:
        old = await cluster.node_of(SLOT)
        (replica,) = await cluster.replicas_of(old)
        assert replica not in cluster.nodes[:3]
        await cluster.admin(old).set("k", "early")
        assert await cluster.admin(old).wait(1, 20_000) == 1
        await cluster.cut_replication(old)
        await cluster.admin(old).set("{k}late", "1")
        await old.kill()
        assert old not in cluster.running_nodes
        assert await cluster.successor(SLOT, old) is replica
        assert await cluster.admin(replica).keys() == ["k"]

        await old.launch()

        async def is_back() -> bool:
            return await cluster.replicas_of(replica) == (old,)

        await until(is_back)
        await cluster.mend_replication(replica)
        assert await cluster.admin(old).keys() == ["k"]
        await cluster.migrate(SLOT, next(n for n in cluster.nodes[:3] if n is not old))
        await cluster.promote(old)
        slot_left = SLOT + 1
        assert await cluster.successor(slot_left, replica) is old
