"""How long to wait before another attempt."""

import random

FIRST_DELAY_S = 0.5
# Somebody sits in front of it and waits.
MAX_DELAY_S = 5.0


class Backoff:
    """Doubles from `FIRST_DELAY_S` to `MAX_DELAY_S`; each delay is spread over its upper half.

    The spread keeps clients that lost the same server from coming back in step.
    """

    def __init__(self) -> None:
        self._attempts = 0

    def next_delay_s(self) -> float:
        """Seconds; each call counts as one more failure."""
        # The exponent stays small however long the server is away.
        ceiling: float = min(MAX_DELAY_S, FIRST_DELAY_S * 2 ** min(self._attempts, 10))
        self._attempts += 1
        return random.uniform(ceiling / 2, ceiling)

    def reset(self) -> None:
        """Start again with `FIRST_DELAY_S`."""
        self._attempts = 0
