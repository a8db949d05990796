"""Random faults for minutes, and every notification accounted for.

    .venv/bin/python -m tests.load.soak --minutes 5 --seed 1

Exits with 1 where a tab has missed something without notice, or got it twice or out of order.
"""

import argparse
import asyncio
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final

from pydantic import TypeAdapter

from huleedu_service_libs.testing.admin import Admin
from tests.fault.audit import Figures, audit
from tests.fault.endpoints import Endpoints
from tests.fault.traffic import Crowd, Traffic, traffic
from tests.load.faults import Fault, ServiceFaults
from tests.load.stages import STAGES

PROCESSES: Final = 2
CLOCK: Final = "%H:%M:%S"
TWO_AT_ONCE: Final = 0.3
"""The share of rounds with two faults."""
# With a silent network; a stopped service takes up to 3 s.
CROWD: Final = Crowd(users=4, patience_s=5)


@dataclass(slots=True)
class Outcome:
    """Of one topology."""

    topology: str
    server: str
    """Name and version."""
    seed: int
    seconds: float
    forgets: bool
    faults: Counter[str] = field(default_factory=Counter)
    figures: Figures = field(default_factory=Figures)
    failure: str | None = None

    @property
    def in_order(self) -> bool:
        """Whether nothing happened that must not with such a Redis."""
        figures = self.figures
        is_well = figures.flawless if self.forgets else figures.nothing_missing
        return is_well and self.failure is None


async def soak(topology: str, seconds: float, seed: int, binary: Path | None) -> Outcome:
    """Break one thing after the other, wait each time until all is well, and judge at the end.

    The sequence of faults and their lengths depend on `seed` alone, their number on the time.
    """
    kind = STAGES[topology]
    async with (
        kind(CROWD.names, binary) as stage,
        Endpoints(stage.service_redis_url, proxied=True, seed=seed) as endpoints,
    ):
        server = await _server(stage.masters()[0])
        outcome = Outcome(topology, server, seed, seconds, forgets=kind.forgets)
        for _ in range(PROCESSES):
            await endpoints.add()
        async with traffic(stage.redis_url, endpoints.url, crowd=CROWD, seed=seed) as going:
            faults = (*stage.faults(), *ServiceFaults(endpoints, going, stage.masters).all)
            try:
                await _break_repeatedly(faults, going, outcome)
                outcome.figures = await going.finish()
            except TimeoutError as stuck:
                outcome.figures = audit(going.ledger)
                outcome.failure = str(stuck)
    return outcome


async def _server(master: Admin) -> str:
    info = await master.info("server")
    name = info.get("server_name", "redis")
    return f"{name} {info[f'{name}_version']}"


async def _break_repeatedly(faults: Sequence[Fault], going: Traffic, outcome: Outcome) -> None:
    choose = Random(outcome.seed)
    ends_at = time.monotonic() + outcome.seconds
    while time.monotonic() < ends_at:
        chosen = _choose_faults(faults, choose)
        names = [fault.name for fault in chosen]
        what = " and ".join(names)
        _say(f"{outcome.topology}: {what}")
        going.ledger.remark(f"{what}, beginning {time.strftime(CLOCK)}")
        async with asyncio.TaskGroup() as tasks:
            for fault in chosen:
                tasks.create_task(fault.cause(Random(choose.random())))
        going.ledger.remark(f"{what}, ended {time.strftime(CLOCK)}")
        outcome.faults.update(names)
        await going.flows()
        await going.is_acknowledged(choose.randint(1, 30))


def _choose_faults(faults: Sequence[Fault], choose: Random) -> list[Fault]:
    first = choose.choice(faults)
    if choose.random() >= TWO_AT_ONCE:
        return [first]
    return [first, choose.choice([fault for fault in faults if not fault.side & first.side])]


def _say(text: str) -> None:
    print(time.strftime(CLOCK), text, file=sys.stderr, flush=True)  # noqa: T201 - progress


def table(outcomes: Sequence[Outcome]) -> str:
    """A column for each topology."""
    columns = [["", "server", *Figures().counts()]] + [
        [outcome.topology, outcome.server, *outcome.figures.counts().values()]
        for outcome in outcomes
    ]
    widths = [max(map(len, column)) for column in columns]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in zip(*columns, strict=True)
    )


def main() -> int:
    """0 where everything was in order."""
    parser = argparse.ArgumentParser(prog="python -m tests.load.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5, help="in all, shared by the topologies")
    parser.add_argument("--seed", type=int, default=1, help="of the sequence of faults")
    parser.add_argument("--topology", choices=STAGES, action="append", help="default: each of them")
    parser.add_argument("--server", type=Path, help="redis-server or valkey-server to use")
    parser.add_argument("--json", type=Path, help="file for the outcome")
    arguments = parser.parse_args()

    topologies = arguments.topology or [*STAGES]
    seconds = arguments.minutes * 60 / len(topologies)
    outcomes = [
        asyncio.run(soak(topology, seconds, arguments.seed, arguments.server))
        for topology in topologies
    ]
    print(table(outcomes))  # noqa: T201 - the result
    for outcome in outcomes:
        figures = outcome.figures
        for text in (*figures.breaches, *figures.losses, *figures.examples):
            _say(f"{outcome.topology}: {text}")
        if outcome.failure is not None:
            _say(f"{outcome.topology} did not come to rest:\n{outcome.failure}")
    if arguments.json is not None:
        arguments.json.write_bytes(TypeAdapter(list[Outcome]).dump_json(outcomes, indent=2))
    return 0 if all(outcome.in_order for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
