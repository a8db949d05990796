"""Resident memory of a connection that is open and quiet."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tests.load.bench import upgrade_client
from tests.load.bench.contenders import Contender
from tests.load.bench.options import Options
from tests.load.bench.process_tree import pss_kib
from tests.load.bench.publisher import Once
from tests.load.bench.rig import open_rig
from tests.load.bench.samples import Better, Metric, Samples
from tests.load.bench.upgrade_client import OpenAll

KIB: Final = Metric("kib_per_connection", "KiB per idle connection", Better.LOWER, 1)
AT_ONCE: Final = 20
FIRST: Final = 20
"""Connections before the first reading, so that what is loaded at the first use does not count."""
SETTLE_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class IdleMemory:
    """After one message to each."""

    name: str = "idle-memory"
    base: str | None = None
    metrics: Sequence[Metric] = (KIB,)

    def repetitions(self, _options: Options) -> int:
        return 1

    def contenders(self, chosen: Sequence[Contender]) -> Sequence[Contender]:
        return chosen

    async def measure(
        self, contender: Contender, repetition: int, options: Options, samples: Samples
    ) -> None:
        count = options.storm_connections
        async with open_rig(
            contender, options, users=count + FIRST, client=upgrade_client.run
        ) as rig:
            (client,) = rig.clients
            (handshakes,) = rig.handshakes()
            await client.ask(OpenAll(rig.server.port, handshakes[:FIRST], AT_ONCE))
            before_kib = pss_kib(rig.server.pid)
            opened = await client.ask(OpenAll(rig.server.port, handshakes[FIRST:], AT_ONCE))
            await rig.subscribed()
            proof = await rig.load(Once())
            await asyncio.sleep(SETTLE_S)
            grown_kib = pss_kib(rig.server.pid) - before_kib
        samples.add(self.name, contender.name, repetition, {KIB: grown_kib / count})
        samples.note(self.name, contender.name, *proof.remarks())
        if opened.deflated:
            samples.note(self.name, contender.name, "permessage-deflate was agreed on")
