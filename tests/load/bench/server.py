"""A contender's server as a process of its own, on a free loopback port."""

import asyncio
import contextlib
import os
import signal
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from huleedu_service_libs.child_processes import signal_at_end_of_parent
from tests.load.bench.contenders import Contender, environment
from tests.service_process import free_port

ROOT: Final = Path(__file__).parents[3]
START_TIMEOUT_S: Final = 30
STOP_TIMEOUT_S: Final = 10
POLL_S: Final = 0.02


class ServerEndedError(Exception):
    """It did not start; the message has the end of its output."""


class Server:
    """Entered once it is ready; left with SIGTERM, and SIGKILL where that takes too long.

    `service_root` is a checkout whose code the service runs instead of this one's.
    """

    def __init__(self, contender: Contender, redis_url: str, service_root: Path | None) -> None:
        self.port = free_port()
        self._contender = contender
        self._environment = environment(contender, redis_url)
        self._cwd = ROOT
        if service_root is not None and contender.readiness_path is not None:
            self._cwd = service_root
            libraries = [*(service_root / "libs").glob("*/src")]
            self._environment["PYTHONPATH"] = ":".join(map(str, [*libraries, service_root]))
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """The process that got the command; workers are its children."""
        assert self._process is not None
        return self._process.pid

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *(word.format(port=self.port) for word in self._contender.command),
            cwd=self._cwd,
            env=self._environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
            preexec_fn=signal_at_end_of_parent(signal.SIGTERM),
        )
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._answers(self._process)
        except BaseException:
            await self._kill()
            self._log.close()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process is not None
        if exc is not None:
            exc.add_note(self.output())
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._process.wait()
        except TimeoutError:
            pass
        finally:
            await self._kill()
            self._log.close()

    def output(self) -> str:
        """The end of what it has written."""
        self._log.flush()
        return os.pread(self._log.fileno(), 100_000_000, 0).decode(errors="replace")[-4000:]

    async def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        if self._process is not None:
            await self._process.wait()

    async def _answers(self, process: asyncio.subprocess.Process) -> None:
        while process.returncode is None:
            if await self._ready():
                return
            await asyncio.sleep(POLL_S)
        raise ServerEndedError(self.output())

    async def _ready(self) -> bool:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            try:
                if self._contender.readiness_path is None:
                    return True
                writer.write(
                    f"GET {self._contender.readiness_path} HTTP/1.1\r\nHost: localhost\r\n"
                    "Connection: close\r\n\r\n".encode()
                )
                return (await reader.read()).startswith(b"HTTP/1.1 200")
            finally:
                writer.close()
        return False
