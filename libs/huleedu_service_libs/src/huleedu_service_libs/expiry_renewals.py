"""When the expiries of whose keys were renewed last."""

import time
from typing import Final

from huleedu_service_libs.redis_channels import ChannelName

MAX_REMEMBERED: Final = 10_000
"""Channels; about 2 MB."""


class ExpiryRenewals:
    """Remembers renewals, so that not every publish has to be one; forgetting costs only time."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._renewed_at: dict[ChannelName, float] = {}

    def due_at(self, channel: ChannelName) -> float | None:
        """The time now, for `done`, where a renewal is due."""
        now = time.monotonic()
        renewed_at = self._renewed_at.get(channel)
        return now if renewed_at is None or now - renewed_at >= self._interval_s else None

    def done(self, channel: ChannelName, at: float) -> None:
        """Redis has renewed, at that time or later."""
        if len(self._renewed_at) >= MAX_REMEMBERED:
            self._renewed_at.clear()
        self._renewed_at[channel] = at
