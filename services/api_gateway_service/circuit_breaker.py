"""Whether to ask a neighbour that keeps failing. Pure: it neither waits nor knows what is asked.

- Closed, everybody asks; so many failures in a row open it.
- Open, nobody asks until the recovery time is over.
- Half open, one asks at a time: a success closes it, a failure opens it for as long again.
- What was asked before the state changed says nothing afterwards, however late its answer.
- An attempt without a verdict, because whoever made it was cancelled, leaves everything as it was.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum


class CircuitState(StrEnum):
    """Who may ask: everybody, one at a time, or nobody."""

    CLOSED = "closed"
    HALF_OPEN = "half_open"
    OPEN = "open"


class CircuitOpenError(Exception):
    """Not attempted; worth another try in `retry_after_s` seconds, 0 where somebody else probes."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__("the circuit is open")
        self.retry_after_s = retry_after_s


@dataclass(slots=True)
class Attempt:
    """Whoever makes it says in `succeeded` how it went."""

    succeeded: bool | None = None


class CircuitBreaker:
    """Opens after `failures_to_open` failures in a row; `clock` is in seconds and never set."""

    def __init__(
        self, *, failures_to_open: int, recovery_s: float, clock: Callable[[], float]
    ) -> None:
        self._failures_to_open = failures_to_open
        self._recovery_s = recovery_s
        self._clock = clock
        self._failures = 0
        self._opened_at: float | None = None
        self._probing = False
        # Each change of state begins another one.
        self._period = 0

    @property
    def state(self) -> CircuitState:
        """As it is now."""
        if self._opened_at is None:
            return CircuitState.CLOSED
        return CircuitState.OPEN if self._recovers_in_s() > 0 else CircuitState.HALF_OPEN

    @contextmanager
    def attempt(self) -> Iterator[Attempt]:
        """Around whatever may fail. Raises CircuitOpenError where it is not to be attempted."""
        recovers_in_s = self._recovers_in_s()
        if recovers_in_s > 0 or self._probing:
            raise CircuitOpenError(max(recovers_in_s, 0))
        self._probing = self._opened_at is not None
        period = self._period
        attempt = Attempt()
        try:
            yield attempt
        finally:
            if period == self._period:
                self._judge(attempt)

    def _recovers_in_s(self) -> float:
        return 0 if self._opened_at is None else self._opened_at + self._recovery_s - self._clock()

    def _judge(self, attempt: Attempt) -> None:
        was_probe, self._probing = self._probing, False
        if attempt.succeeded is None:
            return
        self._failures = 0 if attempt.succeeded else self._failures + 1
        if attempt.succeeded and was_probe:
            self._begin_period(opened_at=None)
        elif was_probe or self._failures >= self._failures_to_open:
            self._begin_period(opened_at=self._clock())

    def _begin_period(self, *, opened_at: float | None) -> None:
        self._opened_at = opened_at
        self._failures = 0
        self._period += 1
