"""The one place where production's event loop is chosen and Hypercorn is called."""

import asyncio
from collections.abc import Callable

from hypercorn.asyncio import serve
from hypercorn.config import Config
from hypercorn.typing import ASGIFramework
from hypercorn.utils import LifespanFailureError, LifespanTimeoutError


class StartError(Exception):
    """The application could not start; the message says why."""


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Uvloop's where it is installed; None for asyncio's own loop."""
    try:
        import uvloop  # noqa: PLC0415 - not for every platform
    except ImportError:
        return None
    return uvloop.new_event_loop


async def serve_until(stop: asyncio.Event, app: ASGIFramework, descriptor: int) -> None:
    """Serve on a listening socket, which Hypercorn closes, until `stop` is set.

    Returns when every connection has been told and is gone. Raises StartError.
    """
    config = Config()
    # Not host:port: it has been taken before anything else was done.
    config.bind = [f"fd://{descriptor}"]
    config.accesslog = None
    try:
        await serve(app, config, shutdown_trigger=stop.wait)
    except (LifespanFailureError, LifespanTimeoutError) as error:
        raise StartError(f"the service did not start: {error}") from None
