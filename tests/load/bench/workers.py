"""What a second worker process of this service adds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tests.load.bench import delivery_client
from tests.load.bench.contenders import Contender, service
from tests.load.bench.delivery_client import Open
from tests.load.bench.fan_out import PER_CPU_S, PER_S, WARM_UP_S
from tests.load.bench.handshakes import Speech
from tests.load.bench.options import Options
from tests.load.bench.publisher import Saturate
from tests.load.bench.rig import open_rig
from tests.load.bench.samples import Metric, Samples

CLIENT_PROCESSES: Final = 2


@dataclass(frozen=True, slots=True)
class Workers:
    """One and two."""

    name: str = "workers"
    base: str | None = "service"
    metrics: Sequence[Metric] = (PER_S, PER_CPU_S)

    def repetitions(self, options: Options) -> int:
        return options.repetitions

    def contenders(self, chosen: Sequence[Contender]) -> Sequence[Contender]:
        if not any(one.name.startswith("service") for one in chosen):
            return ()
        return [service(Speech.PLAIN, workers=count) for count in (1, 2)]

    async def measure(
        self, contender: Contender, repetition: int, options: Options, samples: Samples
    ) -> None:
        async with open_rig(
            contender,
            options,
            users=options.connections,
            client=delivery_client.run,
            client_processes=CLIENT_PROCESSES,
        ) as rig:
            await rig.ask_clients([Open(rig.server.port, share) for share in rig.handshakes()])
            await rig.subscribed()
            await rig.load(Saturate(WARM_UP_S, options.window))
            full = await rig.load(Saturate(options.seconds, options.window))
        samples.add(
            self.name,
            contender.name,
            repetition,
            {
                PER_S: full.delivered / full.seconds,
                PER_CPU_S: full.delivered / full.spent.server_s,
            },
        )
        samples.note(self.name, contender.name, *full.remarks())
