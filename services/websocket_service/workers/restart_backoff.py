"""How long a worker that crashed has to wait for its successor."""

from typing import Final

FIRST_DELAY_S: Final = 0.5
MAX_DELAY_S: Final = 30.0
STABLE_AFTER_S: Final = 60.0


class RestartBackoff:
    """At once after a crash out of the blue; then `FIRST_DELAY_S`, doubled to `MAX_DELAY_S`.

    A worker that has served for `STABLE_AFTER_S` begins anew.
    """

    def __init__(self) -> None:
        self._crashes = 0

    def next_delay_s(self, *, served_s: float) -> float:
        """Seconds, after a worker that has served for `served_s`."""
        if served_s >= STABLE_AFTER_S:
            self._crashes = 0
        self._crashes += 1
        if self._crashes == 1:
            return 0.0
        # The exponent stays small however often it crashes.
        return min(MAX_DELAY_S, FIRST_DELAY_S * 2.0 ** min(self._crashes - 2, 10))
