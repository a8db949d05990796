"""The service as deployments run it: a process of its own, on a free loopback port."""

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import websockets
from websockets.asyncio.client import ClientConnection
from websockets.typing import Subprotocol

from huleedu_service_libs.child_processes import signal_at_end_of_parent
from huleedu_service_libs.testing.jwt_helpers import create_jwt

REPO = Path(__file__).parents[1]
SECRET = "a-secret-of-the-tests-with-more-than-32-bytes"
START_TIMEOUT_S = 30
STOP_TIMEOUT_S = 15
# Below what systems give to outgoing connections: with hundreds of those in a second one of them
# would have the port before the process that it was meant for.
LISTENING_PORTS = range(10_000, 32_768)
CONTROL_CHANNEL = 1
"""Of a process's subscriptions, the one that is its own."""
HYPERCORN = (sys.executable, "-m", "hypercorn", "services.websocket_service.main:app", "--bind")
SERVE = (
    str(Path(sys.executable).with_name("websocket-service")),
    *("serve", "--host", "127.0.0.1", "--port", "{port}"),
)


def token(user: str = "teacher-1", **claims: Any) -> str:
    """A token that the service accepts, save for what `claims` replace; None leaves one out."""
    payload = {
        "sub": user,
        "aud": "huleedu-platform",
        "iss": "huleedu-identity-service",
        "exp": int(time.time()) + 3600,
        **claims,
    }
    return create_jwt(SECRET, {name: value for name, value in payload.items() if value is not None})


def free_port() -> int:
    """A loopback port that nobody listens on, and that no outgoing connection is given."""
    while True:
        port = secrets.choice(LISTENING_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class ServiceProcess:
    """Entered once `/readyz` answers; left with SIGTERM and the process gone.

    `command` gets `host:port` appended, or the port in place of `{port}`; `settings` are
    environment variables. With None as `ready_status` it is entered at once.
    """

    def __init__(
        self,
        redis_url: str,
        *,
        settings: Mapping[str, str] | None = None,
        command: Sequence[str] = HYPERCORN,
        ready_status: int | None = 200,
    ) -> None:
        self.port = free_port()
        self.redis_url = redis_url
        self._command = [word.format(port=self.port) for word in command]
        if self._command == [*command]:
            self._command.append(f"127.0.0.1:{self.port}")
        self._environment = {
            **os.environ,
            "REDIS_URL": redis_url,
            "JWT_SECRET_KEY": SECRET,
            "LOG_LEVEL": "DEBUG",
            **(settings or {}),
        }
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
                    await self.wait_for_status("/readyz", self._ready_status)
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

    @property
    def url(self) -> str:
        """Of the WebSocket, without a credential."""
        return f"ws://127.0.0.1:{self.port}/ws"

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

    def connect(
        self,
        user: str = "teacher-1",
        *,
        subprotocols: Sequence[str] = (),
        bearer: str | None = None,
        cursor: str | None = None,
        **options: Any,
    ) -> websockets.connect:
        """A client for `async with`, credential in the header: plain unless v1 is asked for."""
        return websockets.connect(
            self.url if cursor is None else f"{self.url}?cursor={quote(cursor)}",
            additional_headers={"Authorization": f"Bearer {bearer or token(user)}"},
            subprotocols=[Subprotocol(name) for name in subprotocols] or None,
            **{"proxy": None, **options},
        )

    async def http(
        self, path: str, *, method: str = "GET", headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers by lower-case name, body. Raises OSError where nobody listens."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close"]
            lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
            writer.write("\r\n".join([*lines, "", ""]).encode())
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


async def receive_all(client: ClientConnection, count: int) -> list[str | bytes]:
    """The next `count` messages."""
    return [await client.recv() for _ in range(count)]
