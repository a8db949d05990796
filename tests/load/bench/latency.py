"""Time from publish to client at a fixed load, beside that to a bare Redis subscriber."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tests.load.bench import bare_subscriber, delivery_client
from tests.load.bench.bare_subscriber import Subscribe, Take
from tests.load.bench.contenders import Contender
from tests.load.bench.delivery_client import Open, TakeLatencies
from tests.load.bench.options import Options
from tests.load.bench.percentiles import percentile_ms
from tests.load.bench.publisher import Pace
from tests.load.bench.remote import Remote
from tests.load.bench.rig import open_rig
from tests.load.bench.samples import Better, Metric, Samples

P50_MS: Final = Metric("p50_ms", "p50, ms", Better.LOWER, 2)
P99_MS: Final = Metric("p99_ms", "p99, ms", Better.LOWER, 2)
BARE_P50_MS: Final = Metric("bare_p50_ms", "bare subscriber's p50, ms", Better.LOWER, 2)
BARE_P99_MS: Final = Metric("bare_p99_ms", "its p99, ms", Better.LOWER, 2)
CORE_PERCENT: Final = Metric("core_percent", "server, % of a core", Better.LOWER)
WARM_UP_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Latency:
    """One message to each user in turn, evenly."""

    name: str = "latency"
    base: str | None = None
    metrics: Sequence[Metric] = (P50_MS, P99_MS, BARE_P50_MS, BARE_P99_MS, CORE_PERCENT)

    def repetitions(self, _options: Options) -> int:
        return 1

    def contenders(self, chosen: Sequence[Contender]) -> Sequence[Contender]:
        return chosen

    async def measure(
        self, contender: Contender, repetition: int, options: Options, samples: Samples
    ) -> None:
        async with (
            open_rig(
                contender, options, users=options.connections, client=delivery_client.run
            ) as rig,
            Remote(bare_subscriber.run, rig.tally) as bare,
        ):
            (client,) = rig.clients
            (handshakes,) = rig.handshakes()
            await client.ask(Open(rig.server.port, handshakes))
            await rig.subscribed()
            channels = {contender.channel(user) for user in rig.users}
            await bare.ask(Subscribe(rig.redis.port, tuple(channels)))
            await rig.load(Pace(WARM_UP_S, options.offered_per_s))
            await client.ask(TakeLatencies(keep=True))
            await bare.ask(Take())
            load = await rig.load(Pace(options.seconds, options.offered_per_s))
            through_server = await client.ask(TakeLatencies(keep=False))
            direct = await bare.ask(Take())
        samples.add(
            self.name,
            contender.name,
            repetition,
            {
                P50_MS: percentile_ms([through_server], 50),
                P99_MS: percentile_ms([through_server], 99),
                BARE_P50_MS: percentile_ms([direct], 50),
                BARE_P99_MS: percentile_ms([direct], 99),
                CORE_PERCENT: 100 * load.spent.server_s / load.seconds,
            },
        )
        samples.note(self.name, contender.name, *load.remarks())
