"""A worker as its supervisor sees it."""

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Final, Self

from huleedu_service_libs.serving.stop_signals import STOP_SIGNALS
from services.websocket_service.workers.channel import Channel, Kind

# Modules in the working directory are none of ours; the console script does not see them either.
_COMMAND: Final = (sys.executable, "-P", "-m", "services.websocket_service.workers.worker")


class WorkerProcess:
    """One process from its start to its end.

    `report` is the last one that it sent, `failure` why it says that it can't start.
    """

    def __init__(self, process: asyncio.subprocess.Process, channel: Channel) -> None:
        self._process = process
        self._channel = channel
        self._answer: asyncio.Future[bool] | None = None
        self._loop = asyncio.get_running_loop()
        self._ready_at: float | None = None
        self.report = b""
        self.failure: str | None = None

    @classmethod
    async def launch(cls, listener: socket.socket) -> Self:
        """Start one that serves on the socket."""
        ours, theirs = socket.socketpair()
        # Whoever signals the whole group may hit it before it has handlers: it inherits this.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            process = await asyncio.create_subprocess_exec(
                *_COMMAND,
                str(listener.fileno()),
                str(theirs.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(listener.fileno(), theirs.fileno()),
            )
        except BaseException:
            ours.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            theirs.close()
        return cls(process, await Channel.over(ours))

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def ready(self) -> bool:
        """Whether it has begun to serve."""
        return self._ready_at is not None

    @property
    def served_s(self) -> float:
        """Seconds since it began to serve."""
        return 0.0 if self._ready_at is None else self._loop.time() - self._ready_at

    @property
    def ended_in_order(self) -> bool:
        """Whether it has ended as one does that was asked to, by whomever."""
        return self._process.returncode in {0, -signal.SIGTERM, -signal.SIGINT}

    @property
    def ending(self) -> str:
        """`signal SIGKILL` or `status 1`, once it has ended."""
        status = self._process.returncode
        if status is not None and status < 0:
            return f"signal {signal.Signals(-status).name}"
        return f"status {status}"

    async def converse(self, page: Callable[[], Awaitable[bytes]]) -> None:
        """Take what it says, and answer it, until it is gone; `page` gives everybody's metrics."""
        async with asyncio.TaskGroup() as answers:

            async def answer() -> None:
                self._channel.send(Kind.PAGE, await page())

            while message := await self._channel.receive():
                match message.kind:
                    case Kind.READY:
                        self._ready_at = self._loop.time()
                    case Kind.FAILED:
                        self.failure = message.body.decode()
                    case Kind.REPORT:
                        self.report = message.body
                        self._settle(answered=True)
                    case Kind.PAGE:
                        answers.create_task(answer())
            self._settle(answered=False)
        await self._channel.close()

    def _settle(self, *, answered: bool) -> None:
        if self._answer is not None:
            self._answer.set_result(answered)
            self._answer = None

    async def answers(self, *, timeout_s: float) -> bool:
        """Ask for a new report; False where none comes in time."""
        if self._answer is None:
            self._answer = self._loop.create_future()
            self._channel.send(Kind.REPORT)
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(self._answer)
        except TimeoutError:
            return False

    async def end(self) -> None:
        """Return when it has ended."""
        await self._process.wait()

    async def stop(self, *, timeout_s: float) -> bool:
        """SIGTERM; False for one that had to be killed because it took too long."""
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(timeout_s):
                await self._process.wait()
        except TimeoutError:
            self._signal(signal.SIGKILL)
            await self._process.wait()
            return False
        return True

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)
