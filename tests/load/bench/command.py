"""This service beside what else Python offers.

    python -m tests.load.bench [--scenario NAME]... [--contender NAME]... [--quick]

Starts everything it needs on loopback, prints tables, and ends.
"""

import argparse
import asyncio
import json
import resource
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from tests.load.bench.chart import draw
from tests.load.bench.contenders import CONTENDERS, NAIVE, Contender
from tests.load.bench.fan_out import FanOut
from tests.load.bench.idle_cpu import IdleCpu
from tests.load.bench.idle_memory import IdleMemory
from tests.load.bench.latency import Latency
from tests.load.bench.machine import Machine
from tests.load.bench.options import Options
from tests.load.bench.samples import Sample, Samples
from tests.load.bench.scenario import Scenario
from tests.load.bench.slow_readers import SlowReaders
from tests.load.bench.storm import Storm
from tests.load.bench.tables import machine_lines, table
from tests.load.bench.workers import Workers

SCENARIOS: Final[Sequence[Scenario]] = (
    FanOut("fan-out", users=None),
    FanOut("one-to-many", users=5),
    Storm(),
    IdleMemory(),
    IdleCpu(),
    Latency(),
    SlowReaders(),
    Workers(),
)
QUICK_CONTENDERS: Final = ("service", "naive", "fastapi")
QUICK_SCENARIOS: Final = tuple(one.name for one in SCENARIOS if one.name != "idle-cpu")


@dataclass(frozen=True, slots=True)
class Report:
    """A run."""

    at: str
    machine: Machine
    options: Options
    samples: list[Sample]
    notes: list[str]


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.load.bench", description=__doc__.partition("\n")[0]
    )
    add = parser.add_argument
    scenario_names: Sequence[str] = [scenario.name for scenario in SCENARIOS]
    contender_names: Sequence[str] = [contender.name for contender in CONTENDERS]
    add("--scenario", action="append", choices=scenario_names, help="default: all")
    add("--contender", action="append", choices=contender_names, help="default: all")
    add("--base", default=NAIVE.name, choices=contender_names, help="ratios are to this one")
    add("--json", type=Path, metavar="FILE", help="write every sample there")
    add("--svg", type=Path, metavar="FILE", help="draw the medians there")
    Options.add_to(parser)
    given = parser.parse_args()
    options = Options.of(given)
    scenario_names = given.scenario or (QUICK_SCENARIOS if given.quick else scenario_names)
    contender_names = given.contender or (QUICK_CONTENDERS if given.quick else contender_names)
    scenarios = [one for one in SCENARIOS if one.name in scenario_names]
    contenders = [one for one in CONTENDERS if one.name in contender_names]
    # The children inherit it: thousands of connections each.
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))

    machine = Machine.here(options.redis_binary)
    samples = Samples()
    asyncio.run(_measure(scenarios, contenders, options, samples, given.base))
    _say(*machine_lines(machine), "")
    _say(*(f"- {note}" for note in samples.notes))
    if given.json:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        report = Report(now, machine, options, samples.all, samples.notes)
        text = json.dumps(asdict(report), indent=2, default=str)
        given.json.write_text(f"{text}\n", encoding="utf-8")
    if given.svg:
        given.svg.write_text(draw(samples, contenders, machine), encoding="utf-8")


async def _measure(
    scenarios: Sequence[Scenario],
    contenders: Sequence[Contender],
    options: Options,
    samples: Samples,
    base: str,
) -> None:
    for scenario in scenarios:
        measured = scenario.contenders(contenders)
        for repetition in range(scenario.repetitions(options)):
            for contender in measured:
                await scenario.measure(contender, repetition, options, samples)
        if measured:
            names = [contender.name for contender in measured]
            _say(*table(samples, scenario.name, names, scenario.metrics, scenario.base or base))
            _say("")


def _say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()
