"""An ASGI application on a real server, within the test's event loop."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from hypercorn.asyncio import serve
from hypercorn.config import Config


@asynccontextmanager
async def served(app: FastAPI) -> AsyncIterator[str]:
    """The host and port of the application; it ends with what it is doing once it is left."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    config = Config()
    # To those who listen, instead of to standard error.
    config.errorlog = logging.getLogger("hypercorn.error")
    config.bind = [f"fd://{listener.detach()}"]
    stop = asyncio.Event()
    server = asyncio.create_task(
        serve(app, config, shutdown_trigger=stop.wait)  # type: ignore[arg-type] # the same by another name
    )
    try:
        yield f"127.0.0.1:{port}"
    finally:
        stop.set()
        await server
