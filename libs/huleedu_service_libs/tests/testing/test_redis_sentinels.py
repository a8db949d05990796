from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from huleedu_service_libs.testing.polling import until
from huleedu_service_libs.testing.redis_sentinels import SERVICE_NAME, RedisSentinels

if TYPE_CHECKING:
    from pathlib import Path

WHO_IS_MASTER = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE_NAME)


async def test_failover_that_loses_writes(redis_binary: Path) -> None:
    """A lagging replica takes over without the last writes; the old master becomes a replica."""
    passwords = {"requirepass": "of-data", "masterauth": "of-data"}
    async with RedisSentinels(
        redis_binary, options=passwords, sentinel_options={"requirepass": "of-sentinels"}
    ) as sentinels:
        old = sentinels.master
        await sentinels.admin(old).set("early", "1")
        replica = sentinels.admin(sentinels.replicas[0])

        async def replica_has_it() -> bool:
            return bool(await replica.exists("early"))

        await until(replica_has_it)
        await sentinels.cut_replication()
        await sentinels.admin(old).set("late", "1")
        assert await sentinels.kill_master() is old
        new = await sentinels.new_master()
        assert new is sentinels.master
        assert sentinels.replicas == (old,)
        assert await sentinels.admin(new).keys() == ["early"]
        await sentinels.rejoin(old)
        assert await sentinels.admin(old).keys() == ["early"]
        assert (await sentinels.admin(old).ask("ROLE"))[0] == "slave"


async def test_failover_of_a_living_master(redis_binary: Path) -> None:
    """Two replicas: one takes over, and the old master is a master until it joins."""
    async with RedisSentinels(redis_binary, replicas=2) as sentinels:
        old = sentinels.master
        assert len(sentinels.replicas) == 2
        await sentinels.cut_replication()
        await sentinels.mend_replication()
        await sentinels.promote_replica()
        new = await sentinels.new_master()
        assert new is not old
        assert (await sentinels.admin(old).ask("ROLE"))[0] == "master"
        await sentinels.rejoin(old)
        await sentinels.admin(new).set("k", "v")
        assert await sentinels.admin(new).wait(2, 20_000) == 2


async def test_one_failover_after_the_other(redis_binary: Path) -> None:
    """A master that is well is replaced, and its successor too, as soon as all follow that."""
    async with RedisSentinels(redis_binary, replicas=2) as sentinels:
        for _ in range(2):
            old = sentinels.master
            new = await sentinels.replace_master()
            assert new is sentinels.master
            assert new is not old
            await sentinels.rejoin(old)
            await sentinels.mend_replication()
        await sentinels.admin(new).set("k", "v")
        assert await sentinels.admin(new).wait(2, 20_000) == 2


async def test_failover_that_nobody_waited_for(redis_binary: Path) -> None:
    """Replicas follow the master that the sentinels name, also one that was not there before."""
    async with RedisSentinels(redis_binary, replicas=2) as sentinels:
        old = sentinels.master
        await sentinels.promote_replica()

        async def is_replaced() -> bool:
            return old.port not in [
                int((await sentinels.admin(sentinel).ask(*WHO_IS_MASTER))[1])
                for sentinel in sentinels.sentinels
            ]

        await until(is_replaced)
        assert sentinels.master is old
        await sentinels.mend_replication()
        assert sentinels.master is not old
        await sentinels.admin(sentinels.master).set("k", "v")
        assert await sentinels.admin(sentinels.master).wait(2, 20_000) == 2


async def test_hung_master(redis_binary: Path) -> None:
    """A master that hangs is replaced too, without the vote of a sentinel that is gone."""
    async with RedisSentinels(redis_binary) as sentinels:
        await sentinels.sentinels[0].kill()
        sentinels.master.signal(signal.SIGSTOP)
        new = await sentinels.new_master()
        assert await sentinels.admin(new).ping()


def test_not_running() -> None:
    """A set that was not entered has no master."""
    with pytest.raises(RuntimeError, match="not running"):
        _ = RedisSentinels().master
