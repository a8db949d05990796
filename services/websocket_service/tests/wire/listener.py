"""Somebody who listens to a socket and notes what happens."""

import asyncio
from collections import Counter
from collections.abc import Callable


class Listener:
    """Notes what it hears, and allows a client so many frames."""

    def __init__(self, max_frames: int = 100_000) -> None:
        self._max_frames = max_frames
        self._heard = asyncio.Event()
        self.frames = 0
        self.messages: list[str | bytes] = []
        self.violations: list[int] = []
        self.close_codes: list[int | None] = []
        self.pauses = 0
        self.resumptions = 0
        self.frames_by_turn: Counter[int] = Counter()
        self.turn = 0

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return once `condition` holds, which only something heard can bring about."""
        while not condition():
            self._heard.clear()
            await self._heard.wait()

    async def violated(self) -> int:
        await self.until(lambda: bool(self.violations))
        return self.violations[0]

    async def left(self) -> int | None:
        await self.until(lambda: bool(self.close_codes))
        return self.close_codes[0]

    def on_frame(self) -> bool:
        self.frames += 1
        self.frames_by_turn[self.turn] += 1
        self._heard.set()
        return self.frames <= self._max_frames

    def on_message(self, message: str | bytes) -> None:
        self.messages.append(message)
        self._heard.set()

    def on_violation(self, code: int) -> None:
        self.violations.append(code)
        self._heard.set()

    def on_paused(self) -> None:
        self.pauses += 1
        self._heard.set()

    def on_writable(self) -> None:
        self.resumptions += 1
        self._heard.set()

    def on_gone(self, close_code: int | None) -> None:
        self.close_codes.append(close_code)
        self._heard.set()
