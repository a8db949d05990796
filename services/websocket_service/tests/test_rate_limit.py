"""How much a client may send."""

from hypothesis import given
from hypothesis import strategies as st

from services.websocket_service.rate_limit import TokenBucket


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_burst_then_rate() -> None:
    """A client may send its burst at once, then as much as the rate allows."""
    clock = Clock()
    bucket = TokenBucket(rate=2, burst=3, clock=clock)
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]
    clock.now += 0.5
    assert [bucket.take() for _ in range(2)] == [True, False]
    clock.now += 3600
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]


def test_refused_message_costs_nothing() -> None:
    """Trying in vain does not put off the next message that is allowed."""
    clock = Clock()
    bucket = TokenBucket(rate=1, burst=1, clock=clock)
    assert bucket.take()
    for _ in range(8):
        assert not bucket.take()
        clock.now += 0.125
    assert bucket.take()


# Binary fractions, so that sums are exact.
@given(
    rate=st.integers(1, 16),
    burst=st.integers(1, 16),
    pauses=st.lists(st.integers(0, 64).map(lambda n: n / 64), max_size=60),
)
def test_never_more_than_burst_and_rate(rate: int, burst: int, pauses: list[float]) -> None:
    """In any stretch of time a client gets through at most the burst and the rate's share."""
    clock = Clock()
    bucket = TokenBucket(rate=rate, burst=burst, clock=clock)
    allowed: list[float] = []
    for pause in pauses:
        clock.now += pause
        if bucket.take():
            allowed.append(clock.now)
    for first, start in enumerate(allowed):
        for last in range(first, len(allowed)):
            assert last - first + 1 <= burst + rate * (allowed[last] - start)


@given(rate=st.integers(1, 100), burst=st.integers(1, 10), count=st.integers(1, 50))
def test_client_within_the_rate_is_never_refused(rate: int, burst: int, count: int) -> None:
    """Who keeps to the rate is never told to slow down."""
    clock = Clock()
    bucket = TokenBucket(rate=rate, burst=burst, clock=clock)
    for _ in range(count):
        assert bucket.take()
        clock.now += 1.0001 / rate
