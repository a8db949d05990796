from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True, slots=True)
class HistogramSnapshot:
    """Cumulative counts by upper bound, as Prometheus wants them."""

    buckets: tuple[tuple[str, int], ...]
    total: float


class Histogram:
    """Counts of observations by size; cheap enough for every delivery."""

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, value: float) -> None:
        """Count one value; a bound belongs to the bucket below it."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def snapshot(self) -> HistogramSnapshot:
        """The counts so far."""
        labels = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        return HistogramSnapshot(
            buckets=tuple(zip(labels, accumulate(self._counts), strict=True)), total=self._total
        )
