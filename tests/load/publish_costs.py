"""What each way of publishing costs: Redis' CPU time, and the publisher's time."""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

from tests.load.publish_workloads import BASELINE, Workload, Workloads
from tests.load.redis_cpu import cpu_time_us

# The first repetitions load scripts and fill caches.
WARM_UP = 3


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one way of publishing; medians over the repetitions."""

    regime: str
    workload: str
    redis_us: float
    """CPU time of Redis for one operation, in microseconds."""
    times_xadd: float
    """The same as a multiple of XADD's in the same repetition."""
    operations_per_s: float
    """As the publisher sees it, with Redis on the same machine."""


async def measure_costs(
    pid: int, workloads: Workloads, *, operations: int, repetitions: int
) -> list[Cost]:
    """The workloads take turns: so many operations each in each of the repetitions."""
    await workloads.fill()
    costs: list[Cost] = []
    for regime, ways in (
        ("one by one", workloads.one_by_one()),
        ("batched", workloads.batched()),
    ):
        costs += await _measure_regime(pid, regime, ways, operations, repetitions)
    return costs


async def _measure_regime(
    pid: int, regime: str, ways: Mapping[str, Workload], operations: int, repetitions: int
) -> list[Cost]:
    redis_us: dict[str, list[float]] = {name: [] for name in ways}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for repetition in range(WARM_UP + repetitions):
        for name, work in ways.items():
            began_at, began_us = time.perf_counter(), cpu_time_us(pid)
            await work(operations)
            used_us, took_s = cpu_time_us(pid) - began_us, time.perf_counter() - began_at
            if repetition >= WARM_UP:
                redis_us[name].append(used_us / operations)
                rates[name].append(operations / took_s)
    return [
        Cost(
            regime,
            name,
            redis_us=statistics.median(redis_us[name]),
            times_xadd=statistics.median(
                mine / xadd for mine, xadd in zip(redis_us[name], redis_us[BASELINE], strict=True)
            ),
            operations_per_s=statistics.median(rates[name]),
        )
        for name in ways
    ]
