"""Moments as whole microseconds since the epoch: no more is in a datetime, so nothing is rounded.

A float, which is what Redis scores with, holds them exactly until the year 2112.
"""

from datetime import UTC, datetime, timedelta
from typing import Final

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def epoch_us(moment: datetime) -> int:
    """Of an aware moment."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def moment_at(microseconds: int) -> datetime:
    """The moment, in UTC; OverflowError for one outside the years 1 to 9999."""
    return _EPOCH + timedelta(microseconds=microseconds)
