"""Counts by size."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.websocket_service.histogram import Histogram

BOUNDS = (0.1, 1, 10)


@given(values=st.lists(st.floats(0, 100)))
def test_buckets_are_cumulative(values: list[float]) -> None:
    """Each bucket counts all values up to its bound, the last one all there are."""
    histogram = Histogram(BOUNDS)
    for value in values:
        histogram.observe(value)
    snapshot = histogram.snapshot()

    assert snapshot.buckets == (
        *((str(float(bound)), sum(value <= bound for value in values)) for bound in BOUNDS),
        ("+Inf", len(values)),
    )
    assert snapshot.total == pytest.approx(sum(values))


def test_snapshot_does_not_change() -> None:
    """A scrape sees one moment, whatever is observed meanwhile."""
    histogram = Histogram(BOUNDS)
    before = histogram.snapshot()
    histogram.observe(5)
    assert before == Histogram(BOUNDS).snapshot()
    assert histogram.snapshot() != before
