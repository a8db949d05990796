import random
from typing import Final

MAX_DELAY_S: Final = 5.0


class RetryDelays:
    """Double from `first_delay_s` to `MAX_DELAY_S`, each spread over its upper half.

    The spread keeps those that lost the same server from coming back in step.
    """

    def __init__(self, *, first_delay_s: float = 0.1) -> None:
        self._first_delay_s = first_delay_s
        self._failures = 0

    def next_delay_s(self) -> float:
        """Seconds; each call counts as one more failure."""
        # The exponent stays small however long it goes on.
        ceiling_s: float = min(MAX_DELAY_S, self._first_delay_s * 2.0 ** min(self._failures, 10))
        self._failures += 1
        return random.uniform(ceiling_s / 2, ceiling_s)

    def reset(self) -> None:
        """Begin again with `first_delay_s`."""
        self._failures = 0
