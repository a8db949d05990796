"""What a measurement stands on: a Redis, a contender's server, a publisher, clients."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Final, TypeVar

from redis.asyncio import Redis

from huleedu_service_libs.redis_server import RedisServer
from tests.load.bench import publisher
from tests.load.bench.contenders import MESSAGE_BYTES, Contender
from tests.load.bench.handshakes import Handshake, handshake
from tests.load.bench.options import Options
from tests.load.bench.process_tree import cpu_time_s
from tests.load.bench.publisher import Prepare, Published
from tests.load.bench.recording import record
from tests.load.bench.remote import Command, Remote, Tally
from tests.load.bench.server import Server

SUBSCRIBED_TIMEOUT_S: Final = 30
STALL_S: Final = 3.0
POLL_S: Final = 0.002
BOTTLENECK_SHARE: Final = 0.9

Run = Callable[[Connection, Tally, int], None]
Reply = TypeVar("Reply")


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Seconds on a CPU, of each part."""

    at_s: float
    server_s: float
    redis_s: float
    publisher_s: float
    busiest_client_s: float

    def __sub__(self, earlier: "CpuTimes") -> "CpuTimes":
        return CpuTimes(
            self.at_s - earlier.at_s,
            self.server_s - earlier.server_s,
            self.redis_s - earlier.redis_s,
            self.publisher_s - earlier.publisher_s,
            self.busiest_client_s - earlier.busiest_client_s,
        )

    def bottlenecks(self) -> Iterator[str]:
        """A sentence for each part beside the server that was busy nearly all the time."""
        for part, cpu_s in (
            ("Redis", self.redis_s),
            ("the publisher", self.publisher_s),
            ("the client", self.busiest_client_s),
        ):
            if cpu_s / self.at_s > BOTTLENECK_SHARE:
                yield f"{part} was a bottleneck: {cpu_s / self.at_s:.0%} of a core"


@dataclass(frozen=True, slots=True)
class Load:
    """What came of publishing for a while."""

    expected: int
    delivered: int
    spent: CpuTimes
    stalled_s: float
    """Time at the end in which nothing arrived any more."""

    @property
    def seconds(self) -> float:
        """Until the last delivery."""
        return self.spent.at_s - self.stalled_s

    def remarks(self) -> Iterator[str]:
        """What a reader of the figures has to know."""
        if self.delivered < self.expected:
            yield f"{self.expected - self.delivered} of {self.expected} deliveries never came"
        yield from self.spent.bottlenecks()


class Rig:
    """Use `open_rig`."""

    def __init__(
        self,
        *,
        contender: Contender,
        users: Sequence[str],
        redis: RedisServer,
        server: Server,
        publishing: Remote,
        clients: Sequence[Remote],
        tally: Tally,
    ) -> None:
        self.contender = contender
        self.users = users
        self.redis = redis
        self.server = server
        self.publishing = publishing
        self.clients = clients
        self.tally = tally

    def handshakes(self, connections_per_user: int = 1) -> list[tuple[Handshake, ...]]:
        """Of all users, spread over the clients."""
        every = [
            handshake(self.contender.speech, user)
            for _ in range(connections_per_user)
            for user in self.users
        ]
        count = len(self.clients)
        return [tuple(every[index::count]) for index in range(count)]

    async def ask_clients(self, commands: Sequence[Command[Reply]]) -> list[Reply]:
        """Each client's answer to its command, all at once."""
        return await asyncio.gather(
            *(client.ask(command) for client, command in zip(self.clients, commands, strict=True))
        )

    async def subscribed(self) -> None:
        """Return once Redis knows the channels of all users."""
        channels = {self.contender.channel(user) for user in self.users}
        async with Redis(port=self.redis.port) as redis, asyncio.timeout(SUBSCRIBED_TIMEOUT_S):
            while True:
                if all(count for _, count in await redis.pubsub_numsub(*channels)):
                    return
                await asyncio.sleep(POLL_S)

    def cpu_times(self) -> CpuTimes:
        """Until now."""
        return CpuTimes(
            time.monotonic(),
            cpu_time_s(self.server.pid),
            cpu_time_s(self.redis.pid),
            cpu_time_s(self.publishing.pid),
            max(cpu_time_s(client.pid) for client in self.clients),
        )

    async def load(self, command: Command[Published], *, connections_per_user: int = 1) -> Load:
        """Have it published, and wait until all of it has arrived or nothing arrives any more."""
        base = self.tally.total
        before = self.cpu_times()
        published = await self.publishing.ask(command)
        expected = published.messages * connections_per_user
        delivered = self.tally.total - base
        arrived_at = time.monotonic()
        while delivered < expected and time.monotonic() - arrived_at < STALL_S:
            await asyncio.sleep(POLL_S)
            if (seen := self.tally.total - base) > delivered:
                delivered, arrived_at = seen, time.monotonic()
        spent = self.cpu_times() - before
        return Load(
            expected=expected,
            delivered=delivered,
            spent=spent,
            stalled_s=max(0.0, before.at_s + spent.at_s - arrived_at) + published.stalled_s,
        )


@asynccontextmanager
async def open_rig(
    contender: Contender,
    options: Options,
    *,
    users: int,
    client: Run,
    client_processes: int = 1,
    connections_per_user: int = 1,
) -> AsyncIterator[Rig]:
    """All parts, ready but for the connections."""
    tally = Tally(client_processes)
    names = [f"user-{number:05}" for number in range(users)]
    async with AsyncExitStack() as parts:
        enter: Callable[[Remote], Awaitable[Remote]] = parts.enter_async_context
        redis = await parts.enter_async_context(RedisServer(options.redis_binary))
        async with asyncio.TaskGroup() as preparing:
            recording = preparing.create_task(
                record(redis.port, names, contender.publisher, MESSAGE_BYTES)
            )
            publishing = await enter(Remote(publisher.run, tally))
            clients = [await enter(Remote(client, tally, slot)) for slot in range(client_processes)]
            server = await parts.enter_async_context(
                Server(contender, redis.url, options.service_root)
            )
        await publishing.ask(Prepare(redis.port, recording.result(), connections_per_user))
        yield Rig(
            contender=contender,
            users=names,
            redis=redis,
            server=server,
            publishing=publishing,
            clients=clients,
            tally=tally,
        )
