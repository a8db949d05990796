"""Publishers and tabs of several users, at work while something breaks."""

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from random import Random
from typing import Final

from huleedu_service_libs.notification_settings import HistoryLimits
from huleedu_service_libs.redis_client import RedisClient
from tests.fault.audit import Figures, audit
from tests.fault.ledger import Ledger, Publication
from tests.fault.publisher import Pace, Publisher
from tests.fault.tab import Locate, Tab

# Of everything that is not a fault's own doing there is plenty.
LIMITS: Final = HistoryLimits(size=2000)
PUBLISH_TIMEOUT_S: Final = 0.5
# Under these the service notices within a second what takes several in a deployment.
SETTINGS: Final = {
    "LOG_LEVEL": "INFO",
    "REDIS_TIMEOUT": "0.5",
    "WEBSOCKET_PING_INTERVAL": "1",
    "WEBSOCKET_IDLE_TIMEOUT": "30",
    "WEBSOCKET_RETRY_AFTER": "0.2",
    # A tab that has lost its network comes back before the service has noticed.
    "WEBSOCKET_MAX_CONNECTIONS_PER_USER": "100",
    "NOTIFICATION_HISTORY_SIZE": str(LIMITS.size),
}


@dataclass(frozen=True, slots=True)
class Crowd:
    """How many of each."""

    users: int = 3
    v1_tabs: int = 2
    """Of each user, as the others."""
    plain_tabs: int = 1
    publishers: int = 2
    patience_s: float = 20.0
    """Of a tab, with a silent network; long enough for a machine that is busy."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the users."""
        return tuple(f"teacher-{n}" for n in range(self.users))


CROWD: Final = Crowd()
PACE: Final = Pace()


class Traffic:
    """What goes on within `traffic`: tabs and publishers, told to wait for this or that."""

    def __init__(
        self, client: RedisClient, locate: Locate, crowd: Crowd, pace: Pace, seed: int
    ) -> None:
        self.ledger = Ledger()
        self.publishers: dict[str, list[Publisher]] = {}
        """By user."""
        self._tabs: list[Tab] = []
        self._last: dict[str, Publication] = {}
        choose = Random(seed)
        for user in crowd.names:
            self.publishers[user] = [
                Publisher(client, self.ledger, user, f"{user}-{n}", pace, Random(choose.random()))
                for n in range(crowd.publishers)
            ]
            for n in range(crowd.v1_tabs + crowd.plain_tabs):
                is_plain = n >= crowd.v1_tabs
                name = f"{user}, {'plain' if is_plain else 'v1'} tab {n}"
                history = self.ledger.tab(name, user, is_plain=is_plain)
                self._tabs.append(
                    Tab(
                        self.ledger,
                        history,
                        locate,
                        Random(choose.random()),
                        patience_s=crowd.patience_s,
                    )
                )

    @contextlib.asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Within it, publishers publish and tabs listen."""
        async with asyncio.TaskGroup() as tasks:
            publishers = itertools.chain(*self.publishers.values())
            running = [
                *(tasks.create_task(tab.run()) for tab in self._tabs),
                *(tasks.create_task(publisher.run()) for publisher in publishers),
            ]
            try:
                yield
            finally:
                for task in running:
                    task.cancel()

    async def flows(self) -> None:
        """Return once each tab is open and has received what was published after this call."""
        called_at = self.ledger.now()
        await self.ledger.until(
            lambda: all(tab.is_open and tab.newest_began > called_at for tab in self.ledger.tabs)
        )

    async def is_acknowledged(self, publications: int = 10) -> None:
        """Return once so many more were published for each user, whoever hears of it."""
        await self._grows(self.ledger.receipts, publications)

    async def is_uncertain(self, attempts: int = 1) -> None:
        """Return once so many more attempts for each user have ended without an answer."""
        await self._grows(self.ledger.uncertain_attempts, attempts)

    async def is_tried(self, attempts: int) -> None:
        """Return once so many more attempts for each user have ended, one way or the other."""
        await self._grows(self.ledger.attempts, attempts)

    async def _grows(self, counts: Counter[str], more: int) -> None:
        aims = {user: counts[user] + more for user in self.publishers}
        await self.ledger.until(lambda: all(counts[user] >= aim for user, aim in aims.items()))

    async def burst(self, count: int, *, padding_bytes: int) -> None:
        """Publish so many to each user, beside what goes on."""
        async with asyncio.TaskGroup() as tasks:
            for user, publishers in self.publishers.items():
                tasks.create_task(_burst(publishers[0], count, padding_bytes), name=user)

    async def pause(self) -> None:
        """Return once nothing is being published any more."""
        for publisher in itertools.chain(*self.publishers.values()):
            await publisher.pause()

    def resume(self) -> None:
        """Undo `pause`."""
        for publisher in itertools.chain(*self.publishers.values()):
            publisher.resume()

    async def end(self) -> None:
        """Publish a last one for each user, also while nobody hears it."""
        await self.pause()
        for user, publishers in self.publishers.items():
            self._last[user] = await publishers[0].publish()

    async def audit(self) -> Figures:
        """Wait until all tabs have the last one, or were told of a gap behind it, and judge.

        By then everything has to work again.
        """
        await self.is_even()
        return audit(self.ledger)

    async def is_even(self) -> None:
        """Return once all tabs have what was published as the last one by `end`."""
        ledger, last = self.ledger, self._last
        await ledger.until(lambda: all(ledger.is_even(tab, last[tab.user]) for tab in ledger.tabs))

    async def finish(self) -> Figures:
        """End with every tab connected, and judge."""
        await self.ledger.until(lambda: all(tab.is_open for tab in self.ledger.tabs))
        await self.end()
        return await self.audit()


async def _burst(publisher: Publisher, count: int, padding_bytes: int) -> None:
    for _ in range(count):
        await publisher.publish(padding_bytes=padding_bytes)


@contextlib.asynccontextmanager
async def traffic(
    redis_url: str,
    locate: Locate,
    *,
    crowd: Crowd = CROWD,
    pace: Pace = PACE,
    seed: int = 0,
) -> AsyncIterator[Traffic]:
    """Entered once everything flows; its publishers and tabs are gone when it is left."""
    async with RedisClient(
        client_id="result_service",
        redis_url=redis_url,
        history_limits=LIMITS,
        timeout_s=PUBLISH_TIMEOUT_S,
    ) as client:
        traffic = Traffic(client, locate, crowd, pace, seed)
        async with traffic.at_work():
            await traffic.flows()
            yield traffic
