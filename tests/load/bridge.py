"""What the Kafka bridge costs, and how long events take through it.

    .venv/bin/python -m tests.load.bridge [--json FILE]

Starts a Redis, a bridge and the mock cluster of the tests, measures, prints tables, and ends. With
KAFKA_TEST_BOOTSTRAP_SERVERS it takes those brokers instead, and deletes the service's topics there.
"""

import argparse
import asyncio
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from huleedu_service_libs.redis_server import RedisServer
from huleedu_service_libs.serving.hypercorn_server import loop_factory
from huleedu_service_libs.testing.kafka_for_tests import SERVERS_VARIABLE, kafka_for_tests
from tests.load.bridge_costs import Cost, measure_costs
from tests.load.bridge_latency import EVENTS_PER_S, Latency, measure_latency


@dataclass(frozen=True, slots=True)
class Report:
    """What was measured, and under which conditions."""

    at: str
    python: str
    load_average: tuple[float, float, float]
    """Before the run."""
    kafka: str
    events: int
    repetitions: int
    partitions: int
    costs: Sequence[Cost]
    latencies: Sequence[Latency]


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.load.bridge", description=__doc__.partition("\n")[0]
    )
    # The mock cluster keeps 5 MiB of a partition.
    parser.add_argument("--events", type=int, default=3000, help="in one repetition")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--partitions", type=int, default=6, help="for the latency")
    parser.add_argument("--seconds", type=float, default=20, help="for the latency")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    given = parser.parse_args()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        report = runner.run(
            _measure(given.events, given.repetitions, given.partitions, given.seconds)
        )
    _print(report)
    if given.json:
        given.json.write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")


async def _measure(events: int, repetitions: int, partitions: int, seconds: float) -> Report:
    load_average = os.getloadavg()
    async with kafka_for_tests() as kafka, RedisServer() as redis:
        costs = await measure_costs(redis, kafka, events=events, repetitions=repetitions)
    async with kafka_for_tests() as kafka, RedisServer() as redis:
        latencies = await measure_latency(redis, kafka, partitions=partitions, seconds=seconds)
    return Report(
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        python=platform.python_version(),
        load_average=load_average,
        kafka=os.environ.get(SERVERS_VARIABLE, "mock cluster"),
        events=events,
        repetitions=repetitions,
        partitions=partitions,
        costs=costs,
        latencies=latencies,
    )


def _print(report: Report) -> None:
    write = sys.stdout.write
    write(f"\n{report.kafka}, load average {report.load_average[0]:.1f}\n")
    write(f"{'':24}{'events/s':>10}{'CPU µs':>10}{'x sum':>8}\n")
    for cost in report.costs:
        write(f"{cost.work:24}{cost.events_per_s:10.0f}{cost.cpu_us:10.0f}{cost.times_sum:8.2f}\n")
    write(f"\n{EVENTS_PER_S} events/s, {report.partitions} partitions\n")
    write(f"{'ms to':24}{'p50':>10}{'p99':>10}{'max':>8}\n")
    for latency in report.latencies:
        write(f"{latency.to:24}{latency.p50_ms:10.1f}{latency.p99_ms:10.1f}{latency.max_ms:8.1f}\n")


if __name__ == "__main__":
    main()
