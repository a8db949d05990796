"""What waits to be written to one connection."""

import asyncio
from collections import deque
from dataclasses import dataclass

from services.websocket_service.publication import Publication


@dataclass(frozen=True, slots=True)
class OutboundFrame:
    """One text frame; `publication` is None for the server's own."""

    text: str
    size: int
    """Bytes."""
    publication: Publication | None = None


class Outbox:
    """A queue bounded in bytes and frames, filled without waiting and emptied in one go."""

    __slots__ = ("_bytes", "_finished", "_frames", "_max_bytes", "_max_frames", "_waiter")

    def __init__(self, *, max_bytes: int, max_frames: int) -> None:
        self._frames: deque[OutboundFrame] = deque()
        self._bytes = 0
        self._max_bytes = max_bytes
        self._max_frames = max_frames
        self._finished = False
        self._waiter: asyncio.Future[None] | None = None

    def offer(self, frame: OutboundFrame) -> bool:
        """Append a frame; False, and nothing appended, where the outbox is full."""
        if len(self._frames) >= self._max_frames or self._bytes + frame.size > self._max_bytes:
            return False
        self._frames.append(frame)
        self._bytes += frame.size
        self._wake()
        return True

    def finish(self) -> None:
        """Nothing more will be offered: `take` returns None once all is taken."""
        self._finished = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> OutboundFrame | None:
        """The oldest frame, as soon as there is one; None at the end."""
        while not self._frames:
            if self._finished:
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        frame = self._frames.popleft()
        self._bytes -= frame.size
        return frame
