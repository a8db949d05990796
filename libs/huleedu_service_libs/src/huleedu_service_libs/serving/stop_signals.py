"""Ctrl-C and SIGTERM as a request to stop, and never as an exception at a random place."""

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Final

__all__ = ["STOP_SIGNALS", "end_when_stopped", "run_until_stopped"]

STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def end_when_stopped() -> None:
    """Until there is something to stop, a signal ends the process at once, with status 0.

    An exception out of an import would be no clean end.
    """
    _on_stop(lambda *_: os._exit(0))


def run_until_stopped(
    main: Callable[[asyncio.Event], Coroutine[None, None, None]],
    *,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> None:
    """Run `main(stop)` in a new event loop, by default asyncio's; the first signal sets `stop`.

    The handlers are there before the loop, and no signal has any effect after it: with this, the
    process is expected to end. (The loop's own handlers go with the loop.)
    """
    loop: asyncio.AbstractEventLoop | None = None
    stop = asyncio.Event()
    stopped_early = False

    def request_stop(_number: int, _frame: FrameType | None) -> None:
        nonlocal stopped_early
        stopped_early = True
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(stop.set)

    async def run() -> None:
        nonlocal loop
        loop = asyncio.get_running_loop()
        if stopped_early:
            return
        await main(stop)

    _on_stop(request_stop)
    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(run())
    finally:
        # The interpreter's end takes Python's handlers away first: a second Ctrl-C would kill it
        # there, and turn a clean stop into a failure.
        _on_stop(signal.SIG_IGN)


def _on_stop(handler: Callable[[int, FrameType | None], object] | signal.Handlers) -> None:
    for number in STOP_SIGNALS:
        # nohup has SIGHUP ignored, and wants it so.
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)
