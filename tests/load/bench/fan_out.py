"""Deliveries per CPU-second of the server and per second, at full and at fixed load."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tests.load.bench import delivery_client
from tests.load.bench.contenders import Contender
from tests.load.bench.delivery_client import Count, Open
from tests.load.bench.options import Options
from tests.load.bench.publisher import Pace, Saturate
from tests.load.bench.rig import open_rig
from tests.load.bench.samples import Better, Metric, Samples

PER_CPU_S: Final = Metric("deliveries_per_cpu_s", "deliveries per CPU-second", Better.HIGHER)
PER_S: Final = Metric("deliveries_per_s", "per second", Better.HIGHER)
OFFERED_PER_CPU_S: Final = Metric(
    "offered_deliveries_per_cpu_s", "per CPU-second at a fixed load", Better.HIGHER
)
CLIENT_SHARE: Final = Metric("client_core_share", "client's share of a core", Better.LOWER, 2)
WARM_UP_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class FanOut:
    """All connections are of this many users; None: each of its own."""

    name: str
    users: int | None
    base: str | None = None
    metrics: Sequence[Metric] = (PER_CPU_S, PER_S, OFFERED_PER_CPU_S)

    def repetitions(self, options: Options) -> int:
        return options.repetitions

    def contenders(self, chosen: Sequence[Contender]) -> Sequence[Contender]:
        return chosen

    async def measure(
        self, contender: Contender, repetition: int, options: Options, samples: Samples
    ) -> None:
        users = self.users or options.connections
        each = options.connections // users
        async with open_rig(
            contender,
            options,
            users=users,
            client=delivery_client.run,
            client_processes=options.client_processes,
            connections_per_user=each,
        ) as rig:
            await rig.ask_clients([Open(rig.server.port, share) for share in rig.handshakes(each)])
            await rig.subscribed()
            saturate = Saturate(options.seconds, options.window)
            pace = Pace(options.seconds, options.offered_per_s / each)
            warm_up = Saturate(WARM_UP_S, options.window)
            await rig.load(warm_up, connections_per_user=each)
            full = await rig.load(saturate, connections_per_user=each)
            fixed = await rig.load(pace, connections_per_user=each)
            received = await rig.ask_clients([Count() for _ in rig.clients])
        samples.add(
            self.name,
            contender.name,
            repetition,
            {
                PER_CPU_S: full.delivered / full.spent.server_s,
                PER_S: full.delivered / full.seconds,
                OFFERED_PER_CPU_S: fixed.delivered / fixed.spent.server_s,
                CLIENT_SHARE: full.spent.busiest_client_s / full.seconds,
            },
        )
        for load in (full, fixed):
            samples.note(self.name, contender.name, *load.remarks())
        if disorder := sum(counts.out_of_order for counts in received):
            samples.note(self.name, contender.name, f"{disorder} deliveries out of order")
        if closed := sum(counts.closed for counts in received):
            samples.note(self.name, contender.name, f"the server ended {closed} connections")
