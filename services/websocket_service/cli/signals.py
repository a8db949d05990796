"""Ctrl-C and SIGTERM as a request to stop, and never as an exception at a random place."""

import asyncio
import signal
from collections.abc import Callable, Coroutine
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_until_stopped(
    main: Callable[[asyncio.Event], Coroutine[None, None, None]],
    *,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> None:
    """Run `main(stop)` in a new event loop, by default asyncio's; the first signal sets `stop`.

    The handlers are there before the loop and stay after it, so that a second Ctrl-C has no
    effect. (The loop's own handlers go with the loop.)
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

    for number in STOP_SIGNALS:
        # nohup has SIGHUP ignored, and wants it so.
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, request_stop)
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(run())
