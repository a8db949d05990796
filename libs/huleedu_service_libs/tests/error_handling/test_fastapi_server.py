"""Errors of a FastAPI application on a real server: what both of them log, and how often."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import BackgroundTasks, FastAPI, Request
from fastapi.responses import StreamingResponse
from fastapi.websockets import WebSocket
from starlette.types import ASGIApp, Receive, Scope, Send
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError

from common_core.error_enums import ErrorCode
from huleedu_service_libs.error_handling import HuleEduError, create_error_detail_with_context
from huleedu_service_libs.error_handling.fastapi import register_error_handlers
from libs.huleedu_service_libs.tests.http_server import served

CALLER_ID = "5b0c1111-2222-4333-8444-555566667777"
WITH_ID = {"X-Correlation-ID": CALLER_ID}
DEADLINE_S = 20
Logs = list[Any]


class Ends:
    """Notes when the application is done with a connection."""

    def __init__(self, app: ASGIApp, ended: asyncio.Event) -> None:
        self._app = app
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        finally:
            if scope["type"] != "lifespan":
                self._ended.set()


class Fails:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            raise ZeroDivisionError("in a middleware")
        await self._app(scope, receive, send)


def limited() -> HuleEduError:
    return HuleEduError(
        create_error_detail_with_context(ErrorCode.RATE_LIMIT, "Slow down", "svc", "op")
    )


@pytest.fixture
def ended() -> asyncio.Event:
    return asyncio.Event()


@pytest.fixture
def app(ended: asyncio.Event) -> FastAPI:
    app = FastAPI(title="Essay Service")
    app.add_middleware(Ends, ended=ended)
    register_error_handlers(app)

    @app.get("/crash")
    async def crash() -> None:
        raise ZeroDivisionError

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def body() -> AsyncIterator[bytes]:
            yield b"first"
            raise ZeroDivisionError

        return StreamingResponse(body())

    @app.get("/later")
    async def later(tasks: BackgroundTasks) -> str:
        tasks.add_task(crash)
        return "done"

    @app.post("/parsed")
    async def parsed(sent: dict[str, str]) -> int:
        return len(sent)

    @app.post("/read")
    async def read(request: Request) -> int:
        return len(await request.body())

    @app.post("/streamed")
    async def streamed(request: Request) -> int:
        return sum([len(chunk) async for chunk in request.stream()])

    @app.websocket("/ws")
    async def ws(websocket: WebSocket) -> None:
        await websocket.accept()
        if await websocket.receive_text() == "crash":
            raise ZeroDivisionError
        raise limited()

    return app


@pytest.fixture
def server_log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What the server has to say above what it always says."""
    caplog.set_level(logging.WARNING, "hypercorn.error")
    return caplog


def tracebacks(server_log: pytest.LogCaptureFixture) -> list[type[BaseException] | None]:
    return [record.exc_info[0] for record in server_log.records if record.exc_info]


async def test_a_crash_is_logged_once(
    app: FastAPI, logs: Logs, server_log: pytest.LogCaptureFixture
) -> None:
    """Somebody is called for a defect once, by the service and not by the server as well."""
    async with served(app) as address, httpx.AsyncClient() as client:
        response = await client.get(f"http://{address}/crash", headers=WITH_ID)
    assert response.status_code == 500
    (line,) = logs
    assert line["correlation_id"] == CALLER_ID
    assert server_log.records == []


async def test_a_response_that_breaks_off_is_seen_to(
    app: FastAPI, logs: Logs, server_log: pytest.LogCaptureFixture
) -> None:
    """A client can tell a response that failed half-way from one that has come to its end."""
    async with served(app) as address, httpx.AsyncClient() as client:
        with pytest.raises(httpx.RemoteProtocolError, match="without sending complete"):
            await client.get(f"http://{address}/stream", headers=WITH_ID)
    # The server has to know of it, and has the traceback; the service says which request it was.
    (line,) = logs
    assert (line["log_level"], line["correlation_id"]) == ("error", CALLER_ID)
    assert line["error_type"] == "ZeroDivisionError"
    assert "exc_info" not in line
    assert tracebacks(server_log) == [ZeroDivisionError]


async def test_a_background_task_that_fails_leaves_the_response_alone(
    app: FastAPI, logs: Logs, server_log: pytest.LogCaptureFixture
) -> None:
    """A client that has been answered is not answered again."""
    async with served(app) as address, httpx.AsyncClient() as client:
        response = await client.get(f"http://{address}/later", headers=WITH_ID)
    assert (response.status_code, response.json()) == (200, "done")
    assert [line["correlation_id"] for line in logs] == [CALLER_ID]
    assert tracebacks(server_log) == [ZeroDivisionError]


async def test_a_middleware_that_fails_is_answered(
    app: FastAPI, logs: Logs, server_log: pytest.LogCaptureFixture
) -> None:
    """Even where no handler of the application reaches, a client gets the usual body."""
    app.add_middleware(Fails)
    async with served(app) as address, httpx.AsyncClient() as client:
        response = await client.get(f"http://{address}/crash", headers=WITH_ID)
    assert response.status_code == 500
    assert response.json()["error"]["details"] == {"error_type": "ZeroDivisionError"}
    (line,) = logs
    assert line["correlation_id"] == response.headers["X-Correlation-ID"] == CALLER_ID
    assert tracebacks(server_log) == [ZeroDivisionError]


@pytest.mark.parametrize("path", ["/parsed", "/read", "/streamed"])
async def test_a_client_that_hangs_up_is_no_error(
    app: FastAPI,
    ended: asyncio.Event,
    logs: Logs,
    server_log: pytest.LogCaptureFixture,
    path: str,
) -> None:
    """A client that goes away in the middle of its request is nobody's failure."""
    async with served(app) as address:
        host, port = address.split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            f"POST {path} HTTP/1.1\r\nHost: essays\r\nContent-Type: application/json\r\n"
            'Content-Length: 100\r\n\r\n{"a": "b'.encode()
        )
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        async with asyncio.timeout(DEADLINE_S):
            await ended.wait()
    assert logs == []
    assert server_log.records == []


async def test_a_websocket_that_its_client_leaves_is_no_error(
    app: FastAPI, ended: asyncio.Event, logs: Logs, server_log: pytest.LogCaptureFixture
) -> None:
    """A client may close its socket whenever it likes."""
    async with served(app) as address:
        async with connect(f"ws://{address}/ws"):
            pass
        async with asyncio.timeout(DEADLINE_S):
            await ended.wait()
    assert logs == []
    assert server_log.records == []


@pytest.mark.parametrize(("text", "error"), [("crash", ZeroDivisionError), ("x", HuleEduError)])
async def test_an_error_after_the_upgrade_closes_the_socket(
    app: FastAPI, server_log: pytest.LogCaptureFixture, text: str, error: type[Exception]
) -> None:
    """A WebSocket that was accepted is closed when its view fails, and the server logs why."""
    async with served(app) as address, connect(f"ws://{address}/ws") as socket:
        await socket.send(text)
        with pytest.raises(ConnectionClosedError):
            await socket.recv()
    assert tracebacks(server_log) == [error]
