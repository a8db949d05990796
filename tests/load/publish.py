"""What a durable publish costs.

    .venv/bin/python -m tests.load.publish [--json FILE]

Starts a server of its own of each kind at hand, measures, prints tables, and ends.
"""

import argparse
import asyncio
import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from redis.asyncio import Redis

from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_server import (
    RedisServer,
    embedded_redis_server,
    installed_redis_server,
)
from huleedu_service_libs.testing.redis_binaries import packaged_valkey_server
from tests.load.publish_costs import Cost, measure_costs
from tests.load.publish_memory import Memory, measure_memory
from tests.load.publish_workloads import LIMITS, PAYLOAD_BYTES, USERS, Workloads

BINARIES: Final[Mapping[str, Path | None]] = {
    "embedded": embedded_redis_server(),
    "installed": installed_redis_server(),
    "valkey": packaged_valkey_server(),
}
AT_HAND: Final = {name: binary for name, binary in BINARIES.items() if binary is not None}


@dataclass(frozen=True, slots=True)
class Result:
    """Of one server."""

    server: str
    costs: list[Cost]
    memories: list[Memory]


@dataclass(frozen=True, slots=True)
class Report:
    """What was measured, and under which conditions."""

    at: str
    machine: str
    python: str
    operations: int
    repetitions: int
    results: list[Result]


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.load.publish", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--server", action="append", choices=AT_HAND, help="default: all at hand")
    parser.add_argument("--operations", type=int, default=1000, help="in one repetition")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    given = parser.parse_args()
    results = []
    for name in given.server or AT_HAND:
        result = asyncio.run(_measure(AT_HAND[name], given.operations, given.repetitions))
        _print(result)
        results.append(result)
    if given.json:
        report = Report(
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=_machine(),
            python=platform.python_version(),
            operations=given.operations,
            repetitions=given.repetitions,
            results=results,
        )
        given.json.write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")


async def _measure(binary: Path, operations: int, repetitions: int) -> Result:
    async with (
        RedisServer(binary) as server,
        Redis(port=server.port, protocol=2) as plain,
        RedisClient(
            client_id="load", redis_url=server.url, history_limits=LIMITS, timeout_s=60
        ) as client,
    ):
        memories = await measure_memory(client, plain)
        costs = await measure_costs(
            server.pid, Workloads(client, plain), operations=operations, repetitions=repetitions
        )
        return Result(await _name(plain), costs, memories)


async def _name(plain: Redis) -> str:
    info = await plain.info("server")
    if "valkey_version" in info:
        return f"Valkey {info['valkey_version']}"
    return f"Redis {info['redis_version']}"


def _machine() -> str:
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    return f"{len(models)} x {models[0]}" if models else platform.machine()


def _print(result: Result) -> None:
    write = sys.stdout.write
    write(f"\n{result.server}: {PAYLOAD_BYTES} bytes, {USERS} users\n")
    write(f"{'':12}{'':30}{'x XADD':>8}{'Redis µs':>10}{'per s':>9}\n")
    for cost in result.costs:
        write(
            f"{cost.regime:12}{cost.workload:30}{cost.times_xadd:8.2f}{cost.redis_us:10.2f}"
            f"{cost.operations_per_s:9.0f}\n"
        )
    for memory in result.memories:
        entries = f", {memory.entries} entries" if memory.entries else ""
        write(f"{memory.size_bytes:9} bytes: {memory.key}{entries}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
