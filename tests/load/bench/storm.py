"""Connections that come all at once: how many a server takes per CPU-second and per second."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tests.load.bench import upgrade_client
from tests.load.bench.contenders import Contender
from tests.load.bench.options import Options
from tests.load.bench.publisher import Once
from tests.load.bench.rig import open_rig
from tests.load.bench.samples import Better, Metric, Samples
from tests.load.bench.upgrade_client import OpenAll

PER_CPU_S: Final = Metric("connections_per_cpu_s", "connections per CPU-second", Better.HIGHER)
PER_S: Final = Metric("connections_per_s", "per second", Better.HIGHER)
CLIENT_PROCESSES: Final = 2
AT_ONCE: Final = 50
"""Handshakes under way, of each client process: every listen backlog has room for them."""


@dataclass(frozen=True, slots=True)
class Storm:
    """Ends when Redis knows the channel of each connection's user."""

    name: str = "storm"
    base: str | None = None
    metrics: Sequence[Metric] = (PER_CPU_S, PER_S)

    def repetitions(self, options: Options) -> int:
        return options.repetitions

    def contenders(self, chosen: Sequence[Contender]) -> Sequence[Contender]:
        return chosen

    async def measure(
        self, contender: Contender, repetition: int, options: Options, samples: Samples
    ) -> None:
        count = options.storm_connections
        async with open_rig(
            contender,
            options,
            users=count,
            client=upgrade_client.run,
            client_processes=CLIENT_PROCESSES,
        ) as rig:
            orders = [OpenAll(rig.server.port, share, AT_ONCE) for share in rig.handshakes()]
            before = rig.cpu_times()
            await rig.ask_clients(orders)
            await rig.subscribed()
            spent = rig.cpu_times() - before
            proof = await rig.load(Once())
        samples.add(
            self.name,
            contender.name,
            repetition,
            {PER_CPU_S: count / spent.server_s, PER_S: count / spent.at_s},
        )
        samples.note(self.name, contender.name, *spent.bottlenecks(), *proof.remarks())
