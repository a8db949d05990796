"""How many handshakes may come from one address."""

from hypothesis import given
from hypothesis import strategies as st

from services.websocket_service.address_limits import AddressLimits


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def taken(limits: AddressLimits, address: str, attempts: int) -> int:
    return sum(limits.take(address) for _ in range(attempts))


def test_burst_then_rate() -> None:
    """An address may come in a burst, then as often as the rate allows."""
    clock = Clock()
    limits = AddressLimits(rate=2, burst=3, clock=clock)
    assert taken(limits, "a", 10) == 3
    clock.now += 0.25
    assert not limits.take("a")
    clock.now += 0.25
    assert taken(limits, "a", 10) == 1
    clock.now += 3600
    assert taken(limits, "a", 10) == 3


def test_default_settings() -> None:
    """The burst that a school behind one address needs is there in full."""
    limits = AddressLimits(rate=200, burst=2000, clock=Clock())
    assert taken(limits, "a", 3000) == 2000


def test_addresses_do_not_share() -> None:
    """A flood from one address does not touch another."""
    limits = AddressLimits(rate=1, burst=5, clock=Clock())
    taken(limits, "flooder", 100)
    assert taken(limits, "neighbour", 10) == 5


def test_number_of_addresses_is_bounded() -> None:
    """However many addresses come, a limited number is remembered."""
    clock = Clock()
    limits = AddressLimits(rate=1, burst=5, clock=clock, max_addresses=100)
    for n in range(10_000):
        assert limits.take(f"address {n}")
        clock.now += 0.0001
    assert len(limits) == 100


def test_a_flooder_is_not_forgotten_for_strangers() -> None:
    """Coming from many other addresses does not give a flooder a fresh burst."""
    clock = Clock()
    limits = AddressLimits(rate=0.001, burst=50, clock=clock, max_addresses=100)
    assert taken(limits, "flooder", 200) == 50
    for n in range(10_000):
        limits.take(f"stranger {n}")
    assert taken(limits, "flooder", 200) == 0


def test_flooders_that_hide_each_other_gain_little() -> None:
    """Who empties many buckets in a row has one forgotten, at the price of filling the table."""
    limits = AddressLimits(rate=0.001, burst=10, clock=Clock(), max_addresses=100)
    flooders = [f"flooder {n}" for n in range(20)]
    for flooder in flooders:
        assert taken(limits, flooder, 20) == 10
    spent = 1000
    for n in range(spent):
        limits.take(f"filler {n}")
    gained = sum(taken(limits, flooder, 20) for flooder in flooders)
    assert gained <= spent / 10


def test_quiet_addresses_make_room() -> None:
    """Those whose burst is whole again go before one that is still being held back."""
    clock = Clock()
    limits = AddressLimits(rate=1, burst=1, clock=clock, max_addresses=8)
    for n in range(7):
        assert limits.take(f"early {n}")
    clock.now += 0.5
    assert limits.take("late")
    for n in range(7):
        assert limits.take(f"new {n}")
    assert not limits.take("late")


@given(
    rate=st.integers(1, 300),
    burst=st.integers(1, 30),
    pauses=st.lists(st.floats(0, 2), max_size=80),
)
def test_never_more_than_burst_and_rate(rate: int, burst: int, pauses: list[float]) -> None:
    """In any stretch of time an address gets through at most the burst and the rate's share."""
    clock = Clock()
    limits = AddressLimits(rate=rate, burst=burst, clock=clock)
    allowed: list[float] = []
    for pause in pauses:
        clock.now += pause
        if limits.take("a"):
            allowed.append(clock.now)
    for first, start in enumerate(allowed):
        for last in range(first, len(allowed)):
            assert last - first + 1 <= burst + rate * (allowed[last] - start) + 0.01


@given(rate=st.integers(1, 300), burst=st.integers(1, 10), count=st.integers(1, 50))
def test_address_within_the_rate_is_never_refused(rate: int, burst: int, count: int) -> None:
    """Who keeps to the rate is never refused."""
    clock = Clock()
    limits = AddressLimits(rate=rate, burst=burst, clock=clock)
    for _ in range(count):
        assert limits.take("a")
        clock.now += 1 / rate
