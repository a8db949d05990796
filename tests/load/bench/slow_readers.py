"""Peers that acknowledge and never read, beside healthy ones."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tests.load.bench import delivery_client, publisher, slow_client
from tests.load.bench.contenders import Contender
from tests.load.bench.delivery_client import Open, TakeLatencies
from tests.load.bench.handshakes import handshake
from tests.load.bench.options import Options
from tests.load.bench.percentiles import percentile_ms
from tests.load.bench.process_tree import open_files, rss_kib
from tests.load.bench.publisher import Pace, Prepare
from tests.load.bench.recording import record
from tests.load.bench.remote import Remote, Tally
from tests.load.bench.rig import open_rig
from tests.load.bench.samples import Better, Metric, Samples
from tests.load.bench.slow_client import Neglect

ALONE_P99_MS: Final = Metric("alone_p99_ms", "healthy p99 alone, ms", Better.LOWER, 2)
BESIDE_P99_MS: Final = Metric("beside_p99_ms", "beside slow ones, ms", Better.LOWER, 2)
SERVER_MIB: Final = Metric("server_mib", "server's growth at most, MiB", Better.LOWER, 1)
REDIS_MIB: Final = Metric("redis_mib", "Redis', MiB", Better.LOWER, 1)
CLOSED_S: Final = Metric("closed_s", "all slow ones closed after, s", Better.LOWER, 1)
NEAREST: Final = ("service", "service-v1", "naive", "fastapi")
HEALTHY: Final = 100
HEALTHY_PER_S: Final = 1000.0
SLOW_PER_S_EACH: Final = 10.0
SLOW_BYTES: Final = 4096
READING_INTERVAL_S: Final = 0.1


class _Watch:
    """Looks at the memory of the server and of Redis, and at the server's files, again and again.

    Redis too: where each WebSocket has a subscription, what is not read piles up there.
    """

    def __init__(self, server_pid: int, redis_pid: int) -> None:
        self._server_pid = server_pid
        self._redis_pid = redis_pid
        self._server_before_kib = rss_kib(server_pid)
        self._redis_before_kib = rss_kib(redis_pid)
        self._files_before = open_files(server_pid)
        self._began = time.monotonic()
        self._most_files = 0
        self.server_grown_kib = 0
        self.redis_grown_kib = 0
        self.closed_s: float | None = None

    async def run(self) -> None:
        while True:
            server_kib = rss_kib(self._server_pid) - self._server_before_kib
            self.server_grown_kib = max(self.server_grown_kib, server_kib)
            redis_kib = rss_kib(self._redis_pid) - self._redis_before_kib
            self.redis_grown_kib = max(self.redis_grown_kib, redis_kib)
            more_files = open_files(self._server_pid) - self._files_before
            self._most_files = max(self._most_files, more_files)
            if more_files <= 0 < self._most_files and self.closed_s is None:
                self.closed_s = time.monotonic() - self._began
            await asyncio.sleep(READING_INTERVAL_S)


@dataclass(frozen=True, slots=True)
class SlowReaders:
    """The same load on the healthy ones without and with them.

    It takes long: of this service and the nearest peers; of others where only they are chosen.
    """

    name: str = "slow-readers"
    base: str | None = None
    metrics: Sequence[Metric] = (
        *(ALONE_P99_MS, BESIDE_P99_MS),
        *(SERVER_MIB, REDIS_MIB, CLOSED_S),
    )

    def repetitions(self, _options: Options) -> int:
        return 1

    def contenders(self, chosen: Sequence[Contender]) -> Sequence[Contender]:
        return [one for one in chosen if one.name in NEAREST] or chosen

    async def measure(
        self, contender: Contender, repetition: int, options: Options, samples: Samples
    ) -> None:
        slow_users = [f"slow-{number:05}" for number in range(options.slow_readers)]
        tally = Tally(1)
        async with (
            open_rig(contender, options, users=HEALTHY, client=delivery_client.run) as rig,
            Remote(publisher.run, tally) as slow_publishing,
            Remote(slow_client.run, tally) as slow,
        ):
            (client,) = rig.clients
            (handshakes,) = rig.handshakes()
            await client.ask(Open(rig.server.port, handshakes))
            await rig.subscribed()
            commands = await record(rig.redis.port, slow_users, contender.publisher, SLOW_BYTES)
            await slow_publishing.ask(Prepare(rig.redis.port, commands, 1))

            await client.ask(TakeLatencies(keep=True))
            alone = await rig.load(Pace(options.seconds, HEALTHY_PER_S))
            alone_ns = await client.ask(TakeLatencies(keep=True))

            watch = _Watch(rig.server.pid, rig.redis.pid)
            watching = asyncio.create_task(watch.run())
            await slow.ask(
                Neglect(
                    rig.server.port,
                    tuple(handshake(contender.speech, user) for user in slow_users),
                )
            )
            beside, _ = await asyncio.gather(
                rig.load(Pace(options.slow_seconds, HEALTHY_PER_S)),
                slow_publishing.ask(
                    Pace(options.slow_seconds, SLOW_PER_S_EACH * options.slow_readers)
                ),
            )
            watching.cancel()
            beside_ns = await client.ask(TakeLatencies(keep=False))
        figures = {
            ALONE_P99_MS: percentile_ms([alone_ns], 99),
            BESIDE_P99_MS: percentile_ms([beside_ns], 99),
            SERVER_MIB: watch.server_grown_kib / 1024,
            REDIS_MIB: watch.redis_grown_kib / 1024,
        }
        if watch.closed_s is None:
            after_s = options.slow_seconds
            samples.note(self.name, contender.name, f"slow ones still open after {after_s:.0f} s")
        else:
            figures[CLOSED_S] = watch.closed_s
        samples.add(self.name, contender.name, repetition, figures)
        for load in (alone, beside):
            samples.note(self.name, contender.name, *load.remarks())
