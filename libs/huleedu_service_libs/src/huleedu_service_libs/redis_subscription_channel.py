"""One channel on one connection: who wants it, and whether Redis sends it."""

import asyncio

from redis import exceptions

from huleedu_service_libs.payload import Gap
from huleedu_service_libs.subscription import Subscription


class Channel:
    """What `redis_subscription_connection` calls a `Subscribable`."""

    __slots__ = ("acknowledged", "name", "refused", "subscriptions", "was_lost")

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.acknowledged = False
        self.was_lost = False
        self.refused = False
        self.subscriptions = set[Subscription]()

    @property
    def wanted(self) -> bool:
        return bool(self.subscriptions) and not self.refused

    def acknowledge(self) -> None:
        self.acknowledged = True
        if self.was_lost:
            self.was_lost = False
            gap = Gap()
            gap.received_at = asyncio.get_running_loop().time()
            for subscription in self.subscriptions:
                subscription.mark_gap(gap)
        for subscription in self.subscriptions:
            subscription.wake()

    def lose(self) -> None:
        """Redis sends it no longer; the next acknowledgement comes with a mark."""
        self.was_lost = self.was_lost or self.acknowledged
        self.acknowledged = False

    def refuse(self, error: Exception) -> None:
        self.refused = True
        text = str(error)
        kind = (
            exceptions.NoPermissionError if text.startswith("NOPERM") else exceptions.ResponseError
        )
        for subscription in self.subscriptions:
            subscription.fail(kind(text))

    def moved(self) -> "Channel":
        """The same for another connection; this one has no subscribers any more."""
        successor = Channel(self.name)
        successor.subscriptions, self.subscriptions = self.subscriptions, set()
        successor.was_lost = self.was_lost or self.acknowledged
        return successor
