import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from fastapi import APIRouter, BackgroundTasks, FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse
from fastapi.staticfiles import StaticFiles
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from huleedu_service_libs.error_handling.fastapi import register_error_handlers
from huleedu_service_libs.middleware.http_metrics import HttpMetricsMiddleware
from libs.huleedu_service_libs.tests.http_server import served

# Tracebacks are many lines.
pytestmark = pytest.mark.usefixtures("logs")
DEADLINE_S = 20
Sample = tuple[str, str, str]


class Fails:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/fails":
            raise ZeroDivisionError
        await self._app(scope, receive, send)


async def plain(_request: Request) -> StreamingResponse:
    return StreamingResponse(iter("plain"))


def batches() -> APIRouter:
    inner = APIRouter(prefix="/batches")

    @inner.get("/{batch_id}/status")
    async def status(batch_id: str) -> str:
        return batch_id

    @inner.post("/{batch_id}/status")
    async def set_status(batch_id: str) -> None:
        raise HTTPException(409, batch_id)

    @inner.get("/by-number/{number:int}")
    async def by_number(number: int) -> int:
        return number

    outer = APIRouter(prefix="/v1")
    outer.include_router(inner)
    return outer


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def app(registry: CollectorRegistry, tmp_path: Path) -> FastAPI:
    (tmp_path / "logo.svg").touch()
    app = FastAPI(
        title="Essay Service",
        middleware=[
            Middleware(HttpMetricsMiddleware, registry=registry, prefix="gateway"),
            Middleware(Fails),
        ],
    )
    register_error_handlers(app)
    app.include_router(batches())
    app.include_router(batches(), prefix="/again")

    mounted = FastAPI(title="Mounted")
    mounted.include_router(batches())
    register_error_handlers(mounted)
    app.mount("/schools/{school_id}", mounted)
    app.mount("/static", StaticFiles(directory=tmp_path))
    app.router.routes.append(Mount("/old", routes=[Route("/plain/{name:path}", plain)]))

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
    async def later(tasks: BackgroundTasks) -> None:
        tasks.add_task(crash)

    @app.post("/upload")
    async def upload(request: Request) -> int:
        return len(await request.body())

    @app.post("/late")
    async def late(request: Request) -> str:
        try:
            await request.body()
        except ClientDisconnect:
            return "nobody reads this"
        return "in time"

    return app


@asynccontextmanager
async def client_of(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://essays") as client:
        yield client


def counted(registry: CollectorRegistry) -> dict[Sample, float]:
    """How many requests ended, by method, endpoint and status."""
    return {
        (sample.labels["method"], sample.labels["endpoint"], sample.labels["http_status"]): (
            sample.value
        )
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "gateway_http_requests_total"
    }


def timed(registry: CollectorRegistry) -> dict[tuple[str, str], float]:
    return {
        (sample.labels["method"], sample.labels["endpoint"]): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "gateway_http_request_duration_seconds_count"
    }


STATUS = "/v1/batches/{batch_id}/status"


@pytest.mark.parametrize(
    ("method", "path", "sample"),
    [
        ("GET", "/v1/batches/b-1/status", ("GET", STATUS, "200")),
        ("GET", "/v1/batches/b-1/status?limit=5", ("GET", STATUS, "200")),
        ("POST", "/v1/batches/b-1/status", ("POST", STATUS, "409")),
        ("DELETE", "/v1/batches/b-1/status", ("DELETE", STATUS, "405")),
        ("BREW", "/v1/batches/b-1/status", ("OTHER", STATUS, "405")),
        ("GET", "/again/v1/batches/b-1/status", ("GET", f"/again{STATUS}", "200")),
        ("GET", "/schools/s-1/v1/batches/b-1/status",
         ("GET", f"/schools/{{school_id}}{STATUS}", "200")),
        ("GET", "/schools/s-1/nowhere", ("GET", "unmatched", "404")),
        ("GET", "/v1/batches/by-number/7",
         ("GET", "/v1/batches/by-number/{number}", "200")),
        # More digits than Python turns into a number: the router fails.
        ("GET", "/v1/batches/by-number/" + "7" * 5_000, ("GET", "unmatched", "500")),
        ("GET", "/old/plain/a/b", ("GET", "/old/plain/{name}", "200")),
        ("GET", "/static/logo.svg", ("GET", "/static/{path}", "200")),
        ("GET", "/static/nothing", ("GET", "/static/{path}", "404")),
        ("GET", "/v1/batches/b-1/status/", ("GET", "unmatched", "307")),
        ("GET", "/nowhere", ("GET", "unmatched", "404")),
        ("BREW", "/nowhere", ("OTHER", "unmatched", "404")),
        ("GET", "/crash", ("GET", "/crash", "500")),
        ("GET", "/fails", ("GET", "unmatched", "500")),
        ("GET", "/stream", ("GET", "/stream", "500")),
        ("GET", "/later", ("GET", "/later", "200")),
    ],
)  # fmt: skip
async def test_a_request_is_counted_under_its_route(
    app: FastAPI, registry: CollectorRegistry, method: str, path: str, sample: Sample
) -> None:
    """An operator sees how often each route was asked for, and how that ended."""
    async with client_of(app) as client:
        await client.request(method, path)
    assert counted(registry) == {sample: 1}
    assert timed(registry) == {sample[:2]: 1}


async def test_each_request_counts_once(app: FastAPI, registry: CollectorRegistry) -> None:
    """Requests of a route add up, whatever was in their paths."""
    async with client_of(app) as client:
        for number in range(5):
            await client.get(f"/v1/batches/b-{number}/status")
    assert counted(registry) == {("GET", STATUS, "200"): 5}
    assert timed(registry) == {("GET", STATUS): 5}


async def test_who_is_answered_is_counted(app: FastAPI, registry: CollectorRegistry) -> None:
    """Whoever asks for the figures after a response finds it in them."""
    async with served(app) as address, httpx.AsyncClient() as client:
        for answered in range(1, 20):
            await client.get(f"http://{address}/v1/batches/b/status")
            assert counted(registry) == {("GET", STATUS, "200"): answered}


@pytest.mark.parametrize("path", ["/upload", "/late"])
async def test_a_client_that_hangs_up_is_counted_as_such(
    app: FastAPI, registry: CollectorRegistry, path: str
) -> None:
    """A client that was gone before it was answered is neither a success nor our failure."""
    ended = asyncio.Event()

    class Ends:
        def __init__(self, app: ASGIApp) -> None:
            self._app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await self._app(scope, receive, send)
            if scope["type"] == "http":
                ended.set()

    app.add_middleware(Ends)
    async with served(app) as address:
        host, port = address.split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        head = f"POST {path} HTTP/1.1\r\nHost: essays\r\nContent-Length: 100\r\n\r\n"
        writer.write(head.encode() + b"begun")
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        async with asyncio.timeout(DEADLINE_S):
            await ended.wait()
    assert counted(registry) == {("POST", path, "499"): 1}


@pytest.fixture
def scope(app: FastAPI) -> Scope:
    return {
        "type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b"",
        "app": app,
    }  # fmt: skip


async def silence() -> Message:
    while True:
        await asyncio.Event().wait()


async def no_one(_message: Message) -> None:
    pass


async def test_a_cancelled_request_is_counted_as_not_answered(
    registry: CollectorRegistry, scope: Scope
) -> None:
    """A request that a server gives up is not one that failed."""
    began = asyncio.Event()

    async def wait(_scope: Scope, receive: Receive, _send: Send) -> None:
        began.set()
        await receive()

    middleware = HttpMetricsMiddleware(wait, registry, "gateway")
    request = asyncio.ensure_future(middleware(scope, silence, no_one))
    await began.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert counted(registry) == {("GET", "unmatched", "499"): 1}


async def test_a_request_without_a_response_is_our_failure(
    registry: CollectorRegistry, scope: Scope
) -> None:
    """An application that forgets to answer is counted as a server's error."""

    async def forget(_scope: Scope, _receive: Receive, _send: Send) -> None:
        pass

    await HttpMetricsMiddleware(forget, registry, "gateway")(scope, silence, no_one)
    assert counted(registry) == {("GET", "unmatched", "500"): 1}


@pytest.fixture
def event_loop_runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    method=st.text(st.characters(codec="ascii"), min_size=1, max_size=10) | st.just("GET"),
    segments=st.lists(
        st.sampled_from(["v1", "batches", "by-number", "7", "schools", "static", "old", "plain"])
        | st.text(max_size=10)
    ),
)
def test_no_label_is_a_clients(
    app: FastAPI,
    registry: CollectorRegistry,
    event_loop_runner: asyncio.Runner,
    method: str,
    segments: list[str],
) -> None:
    """Whatever clients send, the number of time series stays small."""
    path = "/" + "/".join(segments)
    request: Scope = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(),
        "headers": [], "query_string": b"",
    }  # fmt: skip

    async def body() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    event_loop_runner.run(app(request, body, no_one))
    patterns = {
        "/again/v1/batches/by-number/{number}", "/old/plain/{name}",
        "/schools/{school_id}/v1/batches/by-number/{number}",
        "/schools/{school_id}" + STATUS, "/static/{path}", "/v1/batches/by-number/{number}",
        STATUS, "unmatched",
    }  # fmt: skip
    assert {endpoint for _, endpoint, _ in counted(registry)} <= patterns
    assert {method for method, _, _ in counted(registry)} <= {"GET", "OTHER"}
