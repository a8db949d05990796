"""How many handshakes may come from one address.

1. What is remembered of an address is one number: when its bucket will be full again. A full bucket
   and one that is not there are the same, so that an address which keeps quiet costs nothing.
2. There are never more than `max_addresses`. For a new one that of a few goes which is closest to
   full, and those that were looked at stay longest. To get rid of its own empty bucket, a flooder
   has to empty as many others as are looked at, all in a row, and then to fill the whole table
   with new addresses: that takes more handshakes than it gains.
"""

from collections import OrderedDict
from collections.abc import Callable
from itertools import islice
from typing import Final

MAX_ADDRESSES: Final = 10_000
_CANDIDATES: Final = 8


class AddressLimits:
    """A token bucket for each address: `burst` at once, `rate` per second sustained.

    `clock` is in seconds.
    """

    def __init__(
        self,
        *,
        rate: float,
        burst: float,
        clock: Callable[[], float],
        max_addresses: int = MAX_ADDRESSES,
    ) -> None:
        self.rate = rate
        self._interval_s = 1 / rate
        # A thousandth of a token for what adding up in floating point loses.
        self._longest_s = (burst - 0.999) / rate
        self._clock = clock
        self._max_addresses = max_addresses
        # By the time of the last look at it, the longest ago first.
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, address: str) -> bool:
        """True where one more is allowed now; one that is not costs nothing."""
        now = self._clock()
        full_at = self._full_at.get(address)
        if full_at is None:
            if len(self._full_at) >= self._max_addresses:
                self._forget_one()
            full_at = now
        elif full_at < now:
            full_at = now
        elif full_at - now > self._longest_s:
            return False
        self._full_at[address] = full_at + self._interval_s
        self._full_at.move_to_end(address)
        return True

    def _forget_one(self) -> None:
        candidates = list(islice(self._full_at, _CANDIDATES))
        for address in candidates:
            self._full_at.move_to_end(address)
        del self._full_at[min(candidates, key=self._full_at.__getitem__)]
