"""The real console script as a process, in a world of its own."""

import asyncio
import contextlib
import os
import pty
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

SCRIPT = str(Path(sys.executable).with_name("websocket-service"))
DEADLINE_S = 30.0

# Variables that change what the commands do; a developer's shell may have any of them.
_OURS = (
    *("CORS_", "ENABLE_", "ENVIRONMENT", "INTERNAL_", "JWT_", "LOG_", "NOTIFICATION_", "OTEL_"),
    *("REDIS_", "WEBSOCKET_"),
)
_TERMINAL = ("NO_COLOR", "FORCE_COLOR", "TERM", "COLUMNS")


@dataclass(frozen=True, slots=True)
class Result:
    status: int
    out: str
    err: str

    @property
    def error_lines(self) -> list[str]:
        return self.err.splitlines()


class Running:
    """A command that has been started; it and its group are killed when the test leaves it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    async def line(self) -> str:
        """The next line of its output; empty at the end."""
        assert self._process.stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            return (await self._process.stdout.readline()).decode().rstrip("\n")

    async def error_line(self, containing: str) -> str:
        """The next line on stderr with this text in it."""
        assert self._process.stderr is not None
        seen = []
        async with asyncio.timeout(DEADLINE_S):
            while raw := await self._process.stderr.readline():
                seen.append(raw.decode())
                if containing in seen[-1]:
                    return seen[-1].rstrip("\n")
        raise AssertionError(f"ended without a line with {containing!r}: {''.join(seen)}")

    def interrupt(self) -> None:
        """What a terminal does on Ctrl-C."""
        os.killpg(self.pid, signal.SIGINT)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def close_output(self) -> None:
        """What `head` does when it has seen enough."""
        transport = self._process._transport  # type: ignore[attr-defined] # no public way
        transport.get_pipe_transport(1).close()

    async def ended(self, given: str | None = None) -> Result:
        """Wait for its end; the output is what has not been read before."""
        async with asyncio.timeout(DEADLINE_S):
            out, err = await self._process.communicate(given.encode() if given else None)
        assert self._process.returncode is not None
        # On a terminal there is no pipe to read the output from.
        return Result(self._process.returncode, (out or b"").decode(), err.decode())

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        await self._process.communicate()


@dataclass(frozen=True, slots=True)
class Console:
    """Starts commands in `folder`, with none of our variables but those given."""

    folder: Path

    def environment(self, variables: dict[str, str]) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(_OURS) and name not in _TERMINAL
        }
        return {**kept, "XDG_RUNTIME_DIR": str(self.runtime_folder), **variables}

    @property
    def runtime_folder(self) -> Path:
        folder = self.folder / "runtime"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    @property
    def announcements(self) -> list[Path]:
        return [path for path in self.runtime_folder.rglob("*") if path.is_file()]

    @contextlib.asynccontextmanager
    async def start(self, *arguments: str, **variables: str) -> AsyncIterator[Running]:
        async with self._start(arguments, asyncio.subprocess.PIPE, variables) as running:
            yield running

    @contextlib.asynccontextmanager
    async def _start(
        self, arguments: tuple[str, ...], stdout: int, variables: dict[str, str]
    ) -> AsyncIterator[Running]:
        process = await asyncio.create_subprocess_exec(
            SCRIPT,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=stdout,
            stderr=asyncio.subprocess.PIPE,
            cwd=self.folder,
            env=self.environment(variables),
            limit=2**24,
            start_new_session=True,
        )
        running = Running(process)
        try:
            yield running
        finally:
            await running.kill()

    async def run(self, *arguments: str, given: str | None = None, **variables: str) -> Result:
        """Run a command to its end; `given` is its standard input."""
        async with self.start(*arguments, **variables) as command:
            return await command.ended(given)

    async def on_terminal(self, *arguments: str, **variables: str) -> str:
        """What a command shows on a terminal."""
        shown, terminal = pty.openpty()
        try:
            variables.setdefault("TERM", "xterm")
            async with self._start(arguments, terminal, variables) as command:
                os.close(terminal)
                reading = asyncio.create_task(asyncio.to_thread(_read_all, shown))
                async with asyncio.timeout(DEADLINE_S):
                    await command.ended()
                    return (await reading).decode()
        finally:
            os.close(shown)


def _read_all(descriptor: int) -> bytes:
    chunks = []
    # A pseudo-terminal's end is an error, once nobody has the other side open.
    with contextlib.suppress(OSError):
        while chunk := os.read(descriptor, 65_536):
            chunks.append(chunk)
    return b"".join(chunks)


def is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def process_end(pid: int) -> None:
    """Wait until a process that is not our child has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, ended.set)
    try:
        async with asyncio.timeout(DEADLINE_S):
            await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
