"""What waits to be written to one connection."""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from itertools import count

from services.websocket_service.publication import Publication


@dataclass(frozen=True, slots=True)
class OutboundFrame:
    """One text frame; `publication` is None for the server's own."""

    text: str
    size: int
    """Bytes."""
    publication: Publication | None = None
    replayed: bool = False
    """True where it comes from the history, so that its age says nothing of the delivery."""


class Outbox:
    """A queue bounded in bytes and frames, filled without waiting and emptied in one go.

    A publication takes the place of an older one with its collapse key in the bounds, not in the
    order: it stands at the end, so that ids leave in the order of publication.
    """

    __slots__ = (
        "_bytes",
        "_empty",
        "_finished",
        "_frames",
        "_max_bytes",
        "_max_frames",
        "_numbers",
        "_waiter",
    )

    def __init__(self, *, max_bytes: int, max_frames: int) -> None:
        # By collapse key, the others by number.
        self._frames: OrderedDict[bytes | int, OutboundFrame] = OrderedDict()
        self._numbers = count()
        self._bytes = 0
        self._max_bytes = max_bytes
        self._max_frames = max_frames
        self._finished = False
        self._waiter: asyncio.Future[None] | None = None
        self._empty: asyncio.Future[None] | None = None

    def offer(self, frame: OutboundFrame) -> bool:
        """Append a frame; False, and nothing appended, where the outbox is full."""
        key = frame.publication.collapse_key if frame.publication is not None else None
        if key is not None and (older := self._frames.pop(key, None)) is not None:
            self._bytes -= older.size
        if len(self._frames) >= self._max_frames or self._bytes + frame.size > self._max_bytes:
            return False
        self._frames[next(self._numbers) if key is None else key] = frame
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
            if self._empty is not None and not self._empty.done():
                self._empty.set_result(None)
            if self._finished:
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        _, frame = self._frames.popitem(last=False)
        self._bytes -= frame.size
        return frame

    async def emptied(self) -> None:
        """Return once the last frame is written and the next one is waited for."""
        if not self._frames and self._waiter is not None:
            return
        self._empty = asyncio.get_running_loop().create_future()
        try:
            await self._empty
        finally:
            self._empty = None
