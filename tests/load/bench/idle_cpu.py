"""CPU time of connections on which nothing happens but pings and heartbeats."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tests.load.bench import upgrade_client
from tests.load.bench.contenders import Contender, service
from tests.load.bench.handshakes import Speech
from tests.load.bench.options import Options
from tests.load.bench.rig import open_rig
from tests.load.bench.samples import Better, Metric, Samples
from tests.load.bench.upgrade_client import Listen, OpenAll

SCALE: Final = 10_000
CORE_PERCENT: Final = Metric(
    "core_percent_per_10000", "% of a core for 10,000 idle connections", Better.LOWER, 2
)
PINGS: Final = Metric("pings_per_connection", "pings in that time, each", Better.HIGHER, 2)
TEXTS: Final = Metric("heartbeats_per_connection", "heartbeats, each", Better.HIGHER, 2)
AT_ONCE: Final = 50


@dataclass(frozen=True, slots=True)
class IdleCpu:
    """Of this service: the peers have no heartbeats."""

    name: str = "idle-cpu"
    base: str | None = "service-v1"
    metrics: Sequence[Metric] = (CORE_PERCENT, PINGS, TEXTS)

    def repetitions(self, _options: Options) -> int:
        return 1

    def contenders(self, chosen: Sequence[Contender]) -> Sequence[Contender]:
        return [service(Speech.V1)] if any(one.name.startswith("service") for one in chosen) else ()

    async def measure(
        self, contender: Contender, repetition: int, options: Options, samples: Samples
    ) -> None:
        count = options.idle_connections
        async with open_rig(contender, options, users=count, client=upgrade_client.run) as rig:
            (client,) = rig.clients
            (handshakes,) = rig.handshakes()
            await client.ask(OpenAll(rig.server.port, handshakes, AT_ONCE))
            await rig.subscribed()
            heard_before = await client.ask(Listen())
            before = rig.cpu_times()
            await asyncio.sleep(options.idle_seconds)
            spent = rig.cpu_times() - before
            heard = await client.ask(Listen())
        samples.add(
            self.name,
            contender.name,
            repetition,
            {
                CORE_PERCENT: 100 * spent.server_s / spent.at_s * SCALE / count,
                PINGS: (heard.pings - heard_before.pings) / count,
                TEXTS: (heard.texts - heard_before.texts) / count,
            },
        )
        if heard.closed:
            samples.note(self.name, contender.name, f"the server ended {heard.closed} connections")
