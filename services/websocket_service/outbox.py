"""What waits to be written to one connection."""

import asyncio
from collections.abc import Callable

from services.websocket_service.outbound import OutboundFrame


class OutboxBudget:
    """What all outboxes of a process may hold together, in bytes.

    `on_exceeded` is called while it is more: it is for somebody who can clear one of them.
    """

    __slots__ = ("max_bytes", "on_exceeded", "used_bytes")

    def __init__(self, max_bytes: int, on_exceeded: Callable[[], None]) -> None:
        self.max_bytes = max_bytes
        self.on_exceeded = on_exceeded
        self.used_bytes = 0


class Outbox:
    """A queue bounded in bytes and frames, filled without waiting and emptied in batches.

    A frame takes the place of an older one with its collapse key in the bounds, not in the order:
    it stands at the end, so that ids leave in the order of publication. For one consumer: once
    `on_offer` has called it, it takes until nothing is left, and says with `settle` that all is
    written. Whoever offers several at once does so between `hold` and `release`, so that they leave
    together.
    """

    __slots__ = (
        "_budget",
        "_busy",
        "_bytes",
        "_frames",
        "_held",
        "_max_bytes",
        "_max_frames",
        "_newest_of_key",
        "_offered",
        "_settled",
        "on_offer",
    )

    def __init__(
        self,
        *,
        max_bytes: int,
        max_frames: int,
        budget: OutboxBudget,
        on_offer: Callable[[], None] = lambda: None,
    ) -> None:
        # In order, by number: a dict, so that one in the middle can go.
        self._frames: dict[int, OutboundFrame] = {}
        self._offered = 0
        self._newest_of_key: dict[bytes, int] | None = None
        self._bytes = 0
        self._max_bytes = max_bytes
        self._max_frames = max_frames
        self._budget = budget
        self._busy = False
        self._held = False
        self._settled: asyncio.Future[None] | None = None
        self.on_offer = on_offer

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def used_bytes(self) -> int:
        """What waits, with what each frame costs beside its text."""
        return self._bytes

    @property
    def oldest_made_at(self) -> float | None:
        """The event loop's time in seconds; None where nothing waits."""
        oldest = next(iter(self._frames.values()), None)
        return None if oldest is None else oldest.made_at

    def offer(self, frame: OutboundFrame) -> bool:
        """Append a frame; False, and nothing appended, where the outbox is full."""
        key = frame.collapse_key
        if key is not None:
            self._drop(key)
        size = frame.size
        if self._is_full(size):
            # What is held may leave, to one who reads.
            self._call()
            if self._is_full(size):
                return False
        self._offered += 1
        self._frames[self._offered] = frame
        if key is not None:
            if self._newest_of_key is None:
                self._newest_of_key = {}
            self._newest_of_key[key] = self._offered
        self._bytes += size
        budget = self._budget
        budget.used_bytes += size
        if budget.used_bytes > budget.max_bytes:
            budget.on_exceeded()
        if not self._held:
            self._call()
        return True

    def hold(self) -> None:
        """Let offers wait for `release`."""
        self._held = True

    def release(self) -> None:
        """Call the consumer for what was offered since `hold`."""
        self._held = False
        self._call()

    def _is_full(self, size: int) -> bool:
        return len(self._frames) >= self._max_frames or self._bytes + size > self._max_bytes

    def _call(self) -> None:
        if not self._busy and self._frames:
            self._busy = True
            self.on_offer()

    def _drop(self, key: bytes) -> None:
        number = self._newest_of_key.pop(key, None) if self._newest_of_key is not None else None
        if number is not None:
            self._subtract(self._frames.pop(number).size)

    def take(self, max_bytes: int) -> list[OutboundFrame]:
        """The oldest frames: at least one, and more where they fit into `max_bytes`."""
        if self._bytes <= max_bytes:
            taken = list(self._frames.values())
            self.clear()
            return taken
        numbers: list[int] = []
        size = 0
        for number, frame in self._frames.items():
            if numbers and size + frame.size > max_bytes:
                break
            numbers.append(number)
            size += frame.size
        taken = [self._frames.pop(number) for number in numbers]
        if self._newest_of_key is not None:
            for frame in taken:
                if frame.collapse_key is not None:
                    del self._newest_of_key[frame.collapse_key]
        self._subtract(size)
        return taken

    def clear(self) -> None:
        """Forget what waits."""
        self._frames = {}
        self._newest_of_key = None
        self._subtract(self._bytes)

    def _subtract(self, size: int) -> None:
        self._bytes -= size
        self._budget.used_bytes -= size

    def settle(self) -> None:
        """Nothing is left, and the peer has taken what was: the next offer calls again."""
        self._busy = False
        if self._settled is not None and not self._settled.done():
            self._settled.set_result(None)

    async def settled(self) -> None:
        """Return once all that was offered is written."""
        while self._busy:
            self._settled = asyncio.get_running_loop().create_future()
            await self._settled
        self._settled = None
