"""The one place where production's event loop is chosen and Hypercorn is called."""

import asyncio
import contextlib
import logging
from collections.abc import Callable

import hypercorn.asyncio.run
from hypercorn.asyncio import serve
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.config import Config
from hypercorn.typing import ASGIFramework
from hypercorn.utils import LifespanFailureError, LifespanTimeoutError

from huleedu_service_libs.serving.start_error import StartError

__all__ = ["loop_factory", "serve_until"]


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Uvloop's where it is installed; None for asyncio's own loop."""
    try:
        import uvloop  # noqa: PLC0415 - not for every platform
    except ImportError:
        return None
    return uvloop.new_event_loop


async def serve_until(
    stop: asyncio.Event,
    app: ASGIFramework,
    descriptor: int,
    *,
    requests_timeout_s: float = Config.graceful_timeout,
) -> None:
    """Serve on a listening socket, which Hypercorn closes, until `stop` is set.

    Returns when every connection has been told and is gone. Requests that are in flight then have
    `requests_timeout_s` to be answered, and their answers to be read; what is left is aborted.
    Raises StartError.
    """
    config = Config()
    # Not host:port: it has been taken before anything else was done.
    config.bind = [f"fd://{descriptor}"]
    # A logger without handlers of its own: those of the service write what it says.
    config.errorlog = logging.getLogger("hypercorn.error")
    config.graceful_timeout = requests_timeout_s
    config.include_server_header = False
    # A service may have put in one of its own.
    if hypercorn.asyncio.run.TCPServer is TCPServer:  # type: ignore[attr-defined]
        hypercorn.asyncio.run.TCPServer = _AbortingTCPServer  # type: ignore[attr-defined]
    try:
        await serve(app, config, shutdown_trigger=stop.wait)
    except (LifespanFailureError, LifespanTimeoutError) as error:
        raise StartError(f"the service did not start: {error}") from None


class _AbortingTCPServer(TCPServer):
    """A connection that ends at the graceful timeout, even if its peer does not read.

    That timeout cancels the connection's task, which in Hypercorn 0.18 then waits for the
    transport's last byte: without end, and the application's shutdown waits with it. Nothing public
    leads to the transport.
    """

    async def run(self) -> None:
        # Nobody but that timeout cancels this. Passed on, asyncio (up to 3.12) logs a traceback.
        with contextlib.suppress(asyncio.CancelledError):
            await super().run()

    async def _close(self) -> None:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            self.writer.transport.abort()
        await super()._close()
