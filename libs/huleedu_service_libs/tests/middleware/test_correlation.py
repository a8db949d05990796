from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import httpx
import pytest
from fastapi import BackgroundTasks, FastAPI, HTTPException, Request
from fastapi.responses import PlainTextResponse, StreamingResponse
from fastapi.websockets import WebSocket
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.responses import Response
from structlog.contextvars import get_contextvars
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from huleedu_service_libs.error_handling import raise_processing_error
from huleedu_service_libs.error_handling.fastapi import (
    extract_correlation_id,
    register_error_handlers,
)
from huleedu_service_libs.middleware.correlation import CorrelationIdMiddleware
from libs.huleedu_service_libs.tests.http_server import served

# Tracebacks are many lines.
pytestmark = pytest.mark.usefixtures("logs")
CALLER_ID = "5b0c1111-2222-4333-8444-555566667777"
WITH_ID = {"X-Correlation-ID": CALLER_ID}


def bound() -> str:
    """The id that a log line would have now."""
    return str(get_contextvars().get("correlation_id"))


@pytest.fixture
def seen() -> list[str]:
    return []


@pytest.fixture
def app_of_views(seen: list[str]) -> FastAPI:
    app = FastAPI(title="Essay Service")
    register_error_handlers(app)
    app.add_middleware(CorrelationIdMiddleware)

    @app.get("/ids")
    async def ids(request: Request) -> list[str]:
        return [bound(), str(extract_correlation_id(request))]

    @app.get("/ids/in-a-thread")
    def ids_in_a_thread(request: Request) -> list[str]:
        return [bound(), str(extract_correlation_id(request))]

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def body() -> AsyncIterator[str]:
            yield bound()

        return StreamingResponse(body())

    @app.get("/later")
    async def later(tasks: BackgroundTasks) -> str:
        async def task() -> None:
            seen.append(bound())

        tasks.add_task(task)
        return bound()

    return app


@pytest.fixture
def app(app_of_views: FastAPI) -> FastAPI:
    app = app_of_views

    @app.get("/own-header")
    async def own_header() -> PlainTextResponse:
        return PlainTextResponse("", headers={"x-correlation-id": str(UUID(int=1))})

    @app.get("/own-error")
    async def own_error() -> None:
        raise_processing_error("svc", "op", "m", uuid4())

    @app.get("/crash")
    async def crash() -> None:
        raise ZeroDivisionError

    @app.websocket("/ws")
    async def ws(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(bound())

    @app.websocket("/ws/refused")
    async def ws_refused(_websocket: WebSocket) -> None:
        raise HTTPException(403)

    return app


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://essays") as client:
        yield client


def echoed(response: httpx.Response) -> str:
    (echo,) = response.headers.get_list("x-correlation-id")
    return str(UUID(echo))


@pytest.mark.parametrize("path", ["/ids", "/ids/in-a-thread"])
async def test_a_callers_id_is_used_throughout(client: httpx.AsyncClient, path: str) -> None:
    """The id that a caller sent is in log lines, in views and in the response."""
    response = await client.get(path, headers=WITH_ID)
    assert [*response.json(), echoed(response)] == [CALLER_ID] * 3


@pytest.mark.parametrize("headers", [{}, {"X-Correlation-ID": "<script>"}])
async def test_an_id_is_made_where_there_is_none(
    client: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    """A caller who sends none, or free text, is told the id that was made instead."""
    first, second = [await client.get("/ids", headers=headers) for _ in range(2)]
    assert set(first.json()) == {echoed(first)}
    assert set(second.json()) == {echoed(second)}
    assert echoed(first) != echoed(second)


async def test_an_id_may_come_by_query(client: httpx.AsyncClient) -> None:
    """A browser that cannot set headers can still say which request it means."""
    response = await client.get("/ids", params={"correlation_id": CALLER_ID})
    assert [*response.json(), echoed(response)] == [CALLER_ID] * 3


async def test_a_streamed_body_knows_the_id(client: httpx.AsyncClient) -> None:
    """Log lines that are written while a response is streamed have the id, too."""
    response = await client.get("/stream", headers=WITH_ID)
    assert (response.text, echoed(response)) == (CALLER_ID, CALLER_ID)


async def test_a_background_task_knows_the_id(client: httpx.AsyncClient, seen: list[str]) -> None:
    """What is done after the response is logged under the request's id."""
    response = await client.get("/later", headers=WITH_ID)
    assert (response.json(), seen) == (CALLER_ID, [CALLER_ID])


@pytest.mark.parametrize(("path", "status"), [("/crash", 500), ("/nowhere", 404)])
async def test_an_error_has_the_id_once(client: httpx.AsyncClient, path: str, status: int) -> None:
    """An error's body and header name the same id."""
    response = await client.get(path)
    assert response.status_code == status
    assert response.json()["error"]["correlation_id"] == echoed(response)


async def test_an_errors_own_id_is_kept(client: httpx.AsyncClient) -> None:
    """An error that belongs to another id, of a queue's message say, says so in both places."""
    response = await client.get("/own-error", headers=WITH_ID)
    assert response.json()["error"]["correlation_id"] == echoed(response) != CALLER_ID


async def test_a_views_own_header_is_kept(client: httpx.AsyncClient) -> None:
    """A view that names an id by itself does not make it two."""
    assert echoed(await client.get("/own-header", headers=WITH_ID)) == str(UUID(int=1))


async def test_nothing_is_left_behind(client: httpx.AsyncClient) -> None:
    """Log lines after a request do not carry its id."""
    await client.get("/ids", headers=WITH_ID)
    await client.get("/crash", headers=WITH_ID)
    assert "correlation_id" not in get_contextvars()


@pytest.mark.parametrize("before", [True, False])
async def test_it_stands_anywhere_among_middlewares(before: bool) -> None:
    """A middleware that asks for the id gets the one that is echoed, wherever it stands."""
    asked: list[str] = []

    async def ask(request: Request, call_next: RequestResponseEndpoint) -> Response:
        asked.append(str(extract_correlation_id(request)))
        return await call_next(request)

    asks = Middleware(BaseHTTPMiddleware, dispatch=ask)
    echoes = Middleware(CorrelationIdMiddleware)
    app = FastAPI(middleware=[asks, echoes] if before else [echoes, asks])
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://essays") as client:
        response = await client.get("/openapi.json")
    assert asked == [echoed(response)]


async def test_a_websocket_has_an_id(app: FastAPI) -> None:
    """A WebSocket is logged under its id, which the handshake's response names."""
    async with served(app) as address:
        async with connect(f"ws://{address}/ws", additional_headers=WITH_ID) as socket:
            assert await socket.recv() == CALLER_ID
            assert socket.response is not None
            assert socket.response.headers.get_all("X-Correlation-ID") == [CALLER_ID]
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"ws://{address}/ws/refused", additional_headers=WITH_ID)
    assert refused.value.response.headers.get_all("X-Correlation-ID") == [CALLER_ID]
