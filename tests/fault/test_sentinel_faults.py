"""Redis behind sentinels changes its master under traffic."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from huleedu_service_libs.testing.redis_sentinels import RedisSentinels
from tests.fault.peers import assert_nothing_went_wrong
from tests.fault.replication import is_replicated
from tests.fault.traffic import SETTINGS, Traffic, traffic
from tests.service_process import ServiceProcess

# A master that has lost its replica takes no more writes: it may have been replaced.
GUARDED = {"min-replicas-to-write": "1", "min-replicas-max-lag": "1"}


@asynccontextmanager
async def served(
    options: Mapping[str, str] | None = None,
) -> AsyncIterator[tuple[RedisSentinels, Traffic]]:
    """A master with a replica, the service, and traffic through it."""
    async with (
        # One alone needs no majority: several may fail to elect a leader, and wait for long.
        RedisSentinels(sentinels=1, options=options) as sentinels,
        ServiceProcess(sentinels.url, settings=SETTINGS) as service,
    ):
        async with traffic(sentinels.url, lambda: service.url) as going:
            yield sentinels, going
        assert_nothing_went_wrong(service.output())


async def test_failover_to_a_replica_with_everything() -> None:
    """Where the new master has what the old one had, tabs miss nothing."""
    async with served() as (sentinels, going):
        # Replication is asynchronous: under traffic, the last few would be missing.
        await going.end()
        await going.is_even()
        await is_replicated(sentinels.admin(sentinels.master))
        await sentinels.kill_master()
        going.resume()
        await sentinels.new_master()
        await going.flows()
        figures = await going.finish()
        assert figures.uncertain, str(figures)
        assert figures.nothing_missing, str(figures)


async def test_failover_to_a_replica_that_lags() -> None:
    """Where the new master lacks what tabs have seen, each of them is told."""
    async with served() as (sentinels, going):
        await sentinels.cut_replication()
        await going.is_acknowledged(20)
        await going.flows()
        old = await sentinels.kill_master()
        killed_at = going.ledger.now()
        await sentinels.new_master()
        await going.flows()
        assert all(tab.was_told(killed_at) for tab in going.ledger.tabs)
        await sentinels.rejoin(old)
        figures = await going.finish()
        assert figures.flawless, str(figures)
        assert not figures.forgotten, str(figures)


async def test_failover_while_the_master_is_well() -> None:
    """A master that is replaced on purpose, and lives on, takes nothing with it in silence."""
    async with served(GUARDED) as (sentinels, going):
        old = sentinels.master
        await sentinels.promote_replica()
        await sentinels.new_master()
        await sentinels.rejoin(old)
        await going.flows()
        figures = await going.finish()
        assert figures.flawless, str(figures)
        assert not figures.forgotten, str(figures)
