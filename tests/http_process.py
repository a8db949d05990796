"""An HTTP server as deployments run it: a process of its own, on a free loopback port."""

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from huleedu_service_libs.child_processes import signal_at_end_of_parent

REPO = Path(__file__).parents[1]
START_TIMEOUT_S = 30
STOP_TIMEOUT_S = 15
# Below what systems give to outgoing connections: with hundreds of those in a second one of them
# would have the port before the process that it was meant for.
LISTENING_PORTS = range(10_000, 32_768)
# With more of them, some share their ports.
_WORKERS = 16


def free_port() -> int:
    """A loopback port that nobody listens on, and that no outgoing connection is given.

    Nor has another of pytest's workers been given it for a server that does not listen yet.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    ours = LISTENING_PORTS[worker % _WORKERS :: _WORKERS]
    while True:
        port = secrets.choice(ours)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class HttpProcess:
    """Entered once `ready_path` answers; left with SIGTERM and the process gone.

    `command` gets `host:port` appended, or the port in place of `{port}`; `settings` are
    environment variables. With None as `ready_status` it is entered at once.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        settings: Mapping[str, str],
        ready_path: str,
        ready_status: int | None = 200,
    ) -> None:
        self.port = free_port()
        self._command = [word.format(port=self.port) for word in command]
        if self._command == [*command]:
            self._command.append(f"127.0.0.1:{self.port}")
        self._environment = {**os.environ, **settings}
        self._ready_path = ready_path
        self._ready_status = ready_status
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            cwd=REPO,
            env=self._environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
            # Tests that are killed can't clean up.
            preexec_fn=signal_at_end_of_parent(signal.SIGTERM),
        )
        try:
            if self._ready_status is not None:
                async with asyncio.timeout(START_TIMEOUT_S):
                    await self.wait_for_status(self._ready_path, self._ready_status)
        except BaseException as error:
            await self._kill()
            error.add_note(self.output())
            self._log.close()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self.running:
                await self.terminate()
        finally:
            await self._kill()
            if exc is not None:
                exc.add_note(self.output())
            self._log.close()

    @property
    def pid(self) -> int:
        """The process that got the command; workers are its children."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """True until the process has ended."""
        return self._process is not None and self._process.returncode is None

    def output(self) -> str:
        """All that the process has written so far."""
        self._log.flush()
        return os.pread(self._log.fileno(), 100_000_000, 0).decode(errors="replace")

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to all its processes, as a terminal or systemd does."""
        os.killpg(self.pid, number)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process that got the command."""
        os.kill(self.pid, number)

    async def wait(self) -> int:
        """The exit status, once the process has ended."""
        assert self._process is not None
        async with asyncio.timeout(STOP_TIMEOUT_S):
            return await self._process.wait()

    async def terminate(self) -> int:
        """SIGTERM; the exit status."""
        self.signal(signal.SIGTERM)
        return await self.wait()

    async def _kill(self) -> None:
        # Workers too: the process leads a group of its own.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        if self._process is not None:
            await self._process.wait()

    async def http(
        self,
        path: str,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers by lower-case name, body. Raises OSError where nobody listens.

        The length of a body that is given goes along.
        """
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        return await self.raw_http("\r\n".join([*lines, "", ""]).encode() + (body or b""))

    async def raw_http(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        """The same for the bytes of a request, which has to end the connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request)
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        finally:
            writer.close()
        status_line, *header_lines = head.decode().split("\r\n")
        pairs = (line.partition(":")[::2] for line in header_lines)
        return (
            int(status_line.split()[1]),
            {name.lower(): value.strip() for name, value in pairs},
            body,
        )

    async def wait_for_status(self, path: str, status: int) -> None:
        """Return once `path` answers with `status`."""
        while True:
            with contextlib.suppress(OSError, IndexError):
                if (await self.http(path))[0] == status:
                    return
            if not self.running:
                raise RuntimeError("the service has ended")
            await asyncio.sleep(0.02)

    async def metrics(self) -> dict[str, float]:
        """Each sample by its name with labels, as in the text format."""
        _, _, body = await self.http("/metrics")
        samples = (line.rpartition(" ") for line in body.decode().splitlines() if line[0] != "#")
        return {name: float(value) for name, _, value in samples}
