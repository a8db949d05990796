"""Percentiles of what clients have measured."""

from array import array
from collections.abc import Iterable

NS_PER_MS = 1_000_000


def percentile_ms(latencies: Iterable[bytes], percent: float) -> float:
    """Milliseconds, of arrays('q') of nanoseconds; the value that `percent` do not exceed.

    Raises ValueError where there is none.
    """
    every = array("q")
    for part in latencies:
        every.frombytes(part)
    if not every:
        raise ValueError("nothing arrived")
    ordered = sorted(every)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] / NS_PER_MS
