from contextlib import ExitStack

import pytest

from services.api_gateway_service.circuit_breaker import (
    CircuitBreaker,
    CircuitOpenError,
    CircuitState,
)


class Clock:
    """Stands still until it is told."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Caller:
    """Asks a neighbour that is well or not, through a breaker with 3 failures and 10 s."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.breaker = CircuitBreaker(failures_to_open=3, recovery_s=10, clock=self.clock)

    def state(self) -> CircuitState:
        return self.breaker.state

    def ask(self, succeeded: bool | None) -> None:
        with self.breaker.attempt() as attempt:
            attempt.succeeded = succeeded

    def fail(self, times: int) -> None:
        for _ in range(times):
            self.ask(succeeded=False)


@pytest.fixture
def caller() -> Caller:
    return Caller()


def test_opens_after_failures_in_a_row(caller: Caller) -> None:
    """A neighbour that fails three times in a row is left alone for as long as was agreed."""
    caller.fail(3)
    assert caller.state() is CircuitState.OPEN
    caller.clock.now_s += 4
    with pytest.raises(CircuitOpenError) as refused:
        caller.ask(succeeded=True)
    assert refused.value.retry_after_s == 6


def test_a_success_in_between_counts(caller: Caller) -> None:
    """Failures count only while there is no success between them."""
    caller.fail(2)
    caller.ask(succeeded=True)
    caller.fail(2)
    assert caller.state() is CircuitState.CLOSED


def test_a_cancelled_attempt_counts_as_nothing(caller: Caller) -> None:
    """A client that hangs up is neither a failure nor the end of a row of failures."""
    caller.fail(2)
    caller.ask(succeeded=None)
    assert caller.state() is CircuitState.CLOSED
    caller.fail(1)
    assert caller.state() is CircuitState.OPEN


def test_one_probe_at_a_time(caller: Caller) -> None:
    """After the recovery time one request tries, and all others are still refused."""
    caller.fail(3)
    caller.clock.now_s += 10
    assert caller.state() is CircuitState.HALF_OPEN
    with caller.breaker.attempt() as probe:
        for _ in range(5):
            with pytest.raises(CircuitOpenError) as refused:
                caller.ask(succeeded=True)
            assert refused.value.retry_after_s == 0
        probe.succeeded = True
    assert caller.state() is CircuitState.CLOSED


def test_a_failed_probe_opens_again(caller: Caller) -> None:
    """One failure of a probe is enough for another whole recovery time."""
    caller.fail(3)
    caller.clock.now_s += 10
    caller.ask(succeeded=False)
    with pytest.raises(CircuitOpenError) as refused:
        caller.ask(succeeded=True)
    assert refused.value.retry_after_s == 10


def test_a_cancelled_probe_makes_room(caller: Caller) -> None:
    """A probe whose client hangs up decides nothing, and the next request may try."""
    caller.fail(3)
    caller.clock.now_s += 10
    caller.ask(succeeded=None)
    assert caller.state() is CircuitState.HALF_OPEN
    caller.ask(succeeded=True)
    assert caller.state() is CircuitState.CLOSED


def test_an_exception_is_no_verdict(caller: Caller) -> None:
    """What breaks in the caller's own code is not the neighbour's failure, and holds up nobody."""
    caller.fail(3)
    caller.clock.now_s += 10
    with pytest.raises(KeyError), caller.breaker.attempt():
        raise KeyError
    caller.ask(succeeded=True)
    assert caller.state() is CircuitState.CLOSED


def test_starts_anew_when_closed(caller: Caller) -> None:
    """A neighbour that is well again has three failures to spare again."""
    caller.fail(3)
    caller.clock.now_s += 10
    caller.ask(succeeded=True)
    caller.fail(2)
    assert caller.state() is CircuitState.CLOSED


@pytest.mark.parametrize("late", [True, False])
def test_late_answers_change_nothing(caller: Caller, *, late: bool) -> None:
    """What was asked before the circuit opened says nothing about how the neighbour is now."""
    with ExitStack() as asked_before:
        slow = asked_before.enter_context(caller.breaker.attempt())
        caller.fail(3)
        caller.clock.now_s += 10
        with caller.breaker.attempt() as probe:
            slow.succeeded = late
            asked_before.close()
            assert caller.state() is CircuitState.HALF_OPEN
            with pytest.raises(CircuitOpenError):
                caller.ask(succeeded=True)
            probe.succeeded = True
    assert caller.state() is CircuitState.CLOSED


def test_requests_that_fail_together_open_it_once(caller: Caller) -> None:
    """Many requests that fail at the same time do not make the recovery time longer."""
    with ExitStack() as together:
        attempts = [together.enter_context(caller.breaker.attempt()) for _ in range(20)]
        for attempt in attempts:
            attempt.succeeded = False
        caller.clock.now_s += 30
    caller.clock.now_s += 9
    assert caller.state() is CircuitState.OPEN
    caller.clock.now_s += 1
    caller.ask(succeeded=True)
    assert caller.state() is CircuitState.CLOSED
