"""A backend service that keeps telling one user something, whatever becomes of Redis."""

import asyncio
from dataclasses import dataclass
from random import Random
from typing import Final, NoReturn

from redis.exceptions import RedisError

from huleedu_service_libs.notifications import Notification
from huleedu_service_libs.protocols import AtomicRedisClientProtocol
from tests.fault.ledger import Ledger, Publication

RETRY_DELAY_S: Final = 0.1
# What services publish has about 0.5 to 2 kB.
PAYLOAD_BYTES: Final = (400, 1900)


@dataclass(frozen=True, slots=True)
class Pace:
    """How a publisher goes about it."""

    interval_s: float = 0.03
    """Between a receipt and the next attempt."""
    given_up: float = 0.3
    """The share of uncertain publications that are not repeated until there is a receipt."""


class Publisher:
    """Publishes one after the other through the library, each with an idempotency key."""

    def __init__(
        self,
        client: AtomicRedisClientProtocol,
        ledger: Ledger,
        user: str,
        name: str,
        pace: Pace,
        choose: Random,
    ) -> None:
        self._client = client
        self._ledger = ledger
        self._user = user
        self._name = name
        self._pace = pace
        self._choose = choose
        self._count = 0
        # Held while a publication is under way.
        self._turn = asyncio.Lock()

    async def run(self) -> NoReturn:
        """Publish until cancelled."""
        while True:
            async with self._turn:
                await self.publish(insists=self._choose.random() >= self._pace.given_up)
            await asyncio.sleep(self._pace.interval_s * self._choose.uniform(0.5, 1.5))

    async def pause(self) -> None:
        """Return once `run` has decided what it was at, and let it begin nothing more."""
        await self._turn.acquire()

    def resume(self) -> None:
        """Undo `pause`."""
        self._turn.release()

    async def publish(
        self, *, insists: bool = True, padding_bytes: int | None = None
    ) -> Publication:
        """Publish one; with `insists`, repeat it until Redis has acknowledged it."""
        self._count += 1
        publication = self._ledger.begin(self._user, f"{self._name}-{self._count}")
        if padding_bytes is None:
            padding_bytes = self._choose.randint(*PAYLOAD_BYTES)
        notification = Notification(
            user_id=self._user,
            event_type="batch_status_updated",
            data={"key": publication.key, "padding": "x" * padding_bytes},
            idempotency_key=publication.key,
        )
        while True:
            try:
                receipt = await self._client.publish_notification(notification)
            except RedisError as error:
                self._ledger.uncertain(publication, error)
            else:
                assert receipt.id is not None
                self._ledger.receipt(publication, receipt.id)
                return publication
            if not insists:
                return publication
            await asyncio.sleep(RETRY_DELAY_S)
