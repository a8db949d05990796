import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any, NoReturn
from uuid import UUID

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import RedirectResponse
from fastapi.websockets import WebSocket
from opentelemetry.sdk.trace import TracerProvider
from pydantic import BaseModel, SecretStr
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from common_core.error_enums import AnyErrorCode, ClassManagementErrorCode, ErrorCode
from huleedu_service_libs.error_handling import (
    ERROR_CODE_TO_HTTP_STATUS,
    create_error_detail_with_context,
    raise_rate_limit_error,
)
from huleedu_service_libs.error_handling.fastapi import (
    answered_error_code,
    create_error_response,
    extract_correlation_id,
    register_error_handlers,
)
from libs.huleedu_service_libs.tests.error_handling.web_apps import Answer, answer, client_of
from libs.huleedu_service_libs.tests.http_server import served

CALLER_ID = "5b0c1111-2222-4333-8444-555566667777"
WITH_ID = {"X-Correlation-ID": CALLER_ID}
ORIGIN = {"Origin": "https://huledu.example"}
Logs = list[Any]
# Tracebacks are many lines.
pytestmark = pytest.mark.usefixtures("logs")
CallNext = Callable[[Request], Awaitable[Response]]


class Essay(BaseModel):
    words: int


class Finished:
    """What a dependency saw of the end of a request."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    async def watch(self) -> AsyncIterator[None]:
        try:
            yield
        except ZeroDivisionError as error:
            self.errors.append(str(error))
            raise


def limited(request: Request) -> NoReturn:
    raise_rate_limit_error(
        "essay_service", "list", 5, 60, "Slow down", extract_correlation_id(request)
    )


views = APIRouter()


@views.get("/crash")
async def crash() -> None:
    raise ZeroDivisionError("secret internals")


@views.get("/crash/in-a-thread")
def crash_in_a_thread() -> None:
    raise ZeroDivisionError("secret internals")


@views.get("/limited", dependencies=[Depends(limited)])
async def limited_view() -> None:
    pass


@views.get("/search")
async def search(limit: Annotated[int, Query(lt=100)], key: int = 0) -> int:
    return limit + key


@views.post("/essays")
async def essays(essay: Essay) -> int:
    return essay.words


@views.get("/stored", response_model=Essay)
async def stored() -> dict[str, str]:
    return {"words": "secret words of a pupil"}


@views.get("/moved")
async def moved() -> None:
    raise HTTPException(307, headers={"Location": "/elsewhere"})


@views.get("/structured")
async def structured() -> None:
    raise HTTPException(409, {"reason": "locked", "key": SecretStr("secret")})


@views.get("/folder/")
async def folder() -> RedirectResponse:
    return RedirectResponse("/crash")


@views.get("/ids")
async def ids(request: Request) -> list[str]:
    return [str(extract_correlation_id(request)) for _ in range(2)]


@views.websocket("/ws/crash")
async def ws_crash(_websocket: WebSocket) -> None:
    raise ZeroDivisionError("secret internals")


@views.websocket("/ws/limited")
async def ws_limited(websocket: WebSocket) -> None:
    raise_rate_limit_error(
        "essay_service", "list", 5, 60, "Slow down", extract_correlation_id(websocket)
    )


@views.websocket("/ws/forbidden")
async def ws_forbidden(_websocket: WebSocket) -> None:
    raise HTTPException(403, "Not for you")


@views.websocket("/ws/search")
async def ws_search(websocket: WebSocket, limit: int) -> None:
    await websocket.accept(str(limit))


def new_app() -> FastAPI:
    app = FastAPI(title="Essay Service")
    app.include_router(views)
    return app


@pytest.fixture
def app() -> FastAPI:
    app = new_app()
    register_error_handlers(app)
    return app


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app) as client:
        yield client


def add_cors(app: FastAPI) -> None:
    app.add_middleware(CORSMiddleware, allow_origins=[ORIGIN["Origin"]])


def cors_first() -> FastAPI:
    app = new_app()
    add_cors(app)
    register_error_handlers(app)
    return app


def cors_last() -> FastAPI:
    app = new_app()
    register_error_handlers(app)
    add_cors(app)
    return app


def cors_from_the_start() -> FastAPI:
    cors = Middleware(CORSMiddleware, allow_origins=[ORIGIN["Origin"]])
    app = FastAPI(title="Essay Service", middleware=[cors])
    app.include_router(views)
    register_error_handlers(app)
    return app


@pytest.mark.parametrize("make", [cors_first, cors_last, cors_from_the_start])
@pytest.mark.parametrize("path", ["/crash", "/crash/in-a-thread", "/limited", "/nowhere"])
async def test_a_page_can_read_an_error(make: Callable[[], FastAPI], path: str) -> None:
    """A page of another origin can read errors, whatever was set up first in the service."""
    async with client_of(make()) as client:
        response = await client.get(path, headers={**ORIGIN, **WITH_ID})
    refused = answer(response)
    assert refused.headers["access-control-allow-origin"] == [ORIGIN["Origin"]]
    assert refused.error["correlation_id"] == CALLER_ID


async def test_a_crash_in_a_thread_is_logged_once(client: httpx.AsyncClient, logs: Logs) -> None:
    """A view that is no coroutine fails like one that is."""
    assert answer(await client.get("/crash/in-a-thread")).status == 500
    (line,) = logs
    assert (line["operation"], type(line["exc_info"])) == ("crash_in_a_thread", ZeroDivisionError)


async def test_a_crash_is_recorded_in_its_trace(client: httpx.AsyncClient) -> None:
    """The trace of a request that crashed holds the exception."""
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")
    with tracer.start_as_current_span("request") as span:
        await client.get("/crash")
    (event,) = span.events  # type: ignore[attr-defined] # the SDK's span, which the API hides
    assert event.attributes["exception.type"] == "ZeroDivisionError"


async def test_a_dependency_sees_what_went_wrong(app: FastAPI, logs: Logs) -> None:
    """A dependency that cleans up is told of the crash, which is answered and logged once."""
    finished = Finished()

    @app.get("/watched", dependencies=[Depends(finished.watch)])
    async def watched() -> None:
        raise ZeroDivisionError("secret internals")

    async with client_of(app) as client:
        assert answer(await client.get("/watched")).status == 500
    assert finished.errors == ["secret internals"]
    assert len(logs) == 1


async def test_a_failing_dependency_is_answered(client: httpx.AsyncClient, logs: Logs) -> None:
    """What refuses before a view runs is answered as the view's own errors are."""
    refused = answer(await client.get("/limited", headers=WITH_ID))
    assert (refused.status, refused.error["code"]) == (429, "RATE_LIMIT")
    assert refused.error["details"] == {"limit": 5, "window_seconds": 60}
    (line,) = logs
    assert (line["log_level"], line["status"], line["correlation_id"]) == ("info", 429, CALLER_ID)


async def test_wrong_parameters_are_explained_without_being_repeated(
    client: httpx.AsyncClient, logs: Logs
) -> None:
    """The client learns which parameters are wrong; neither it nor the log sees what was sent."""
    refused = answer(await client.get("/search", params={"key": "hunter2"}))
    assert (refused.status, refused.error["code"]) == (422, "VALIDATION_ERROR")
    assert refused.error["message"] == "Field required"
    assert refused.error["details"]["validation_errors"] == [
        {"location": ["query", "limit"], "type": "missing", "message": "Field required"},
        {
            "location": ["query", "key"],
            "type": "int_parsing",
            "message": "Input should be a valid integer, unable to parse string as an integer",
        },
    ]
    (line,) = logs
    assert (line["log_level"], line["operation"]) == ("info", "search")
    assert "hunter2" not in repr(line)


@pytest.mark.parametrize("sent", [b'{"words": hunter2}', b"\xff", b"", b"[1]", b"1", b"null"])
async def test_a_body_that_is_none_is_explained(client: httpx.AsyncClient, sent: bytes) -> None:
    """A body that is no JSON, or not the one wanted, is the client's mistake."""
    response = await client.post(
        "/essays", content=sent, headers={"Content-Type": "application/json"}
    )
    refused = answer(response)
    assert refused.status in {400, 422}
    assert refused.error["code"] in {"INVALID_REQUEST", "VALIDATION_ERROR"}
    assert "hunter2" not in response.text


async def test_an_answer_that_does_not_fit_is_our_fault(
    client: httpx.AsyncClient, logs: Logs
) -> None:
    """A view that returns what it did not promise fails as ours, and shows it to nobody."""
    response = await client.get("/stored")
    failed = answer(response)
    assert (failed.status, failed.error["code"]) == (500, "UNKNOWN_ERROR")
    assert failed.error["details"] == {"error_type": "ResponseValidationError"}
    (line,) = logs
    assert (line["log_level"], line["operation"]) == ("error", "stored")
    assert line["validation_errors"][0]["location"] == ["response", "words"]
    assert "secret words" not in response.text + repr(line)


async def test_redirects_stay_redirects(client: httpx.AsyncClient, logs: Logs) -> None:
    """A client is led on, by the framework and by a view."""
    for path, location in (
        ("/folder", "http://essays/folder/"),
        ("/moved", "/elsewhere"),
        ("/folder/", "/crash"),
    ):
        response = await client.get(path)
        assert (response.status_code, response.headers["Location"]) == (307, location)
    assert logs == []


async def test_an_abort_may_say_more_than_a_sentence(client: httpx.AsyncClient) -> None:
    """Data that a view aborts with are in the details."""
    refused = answer(await client.get("/structured"))
    assert (refused.status, refused.error["message"]) == (409, "Conflict")
    assert refused.error["details"] == {"detail": {"reason": "locked", "key": "**********"}}


@pytest.mark.parametrize(
    ("title", "service"),
    [
        ("API Gateway Service", "api_gateway_service"),
        ("essay_service", "essay_service"),
        (" Essays: v2.0 (beta) ", "essays_v2_0_beta"),
    ],
)
async def test_a_service_is_named_by_its_title(title: str, service: str) -> None:
    """An error says which service it comes from, as other services write it."""
    app = FastAPI(title=title)
    register_error_handlers(app)
    async with client_of(app) as client:
        assert answer(await client.get("/nowhere")).error["service"] == service


@pytest.mark.parametrize("code", ERROR_CODE_TO_HTTP_STATUS)
def test_every_code_has_a_response(code: AnyErrorCode) -> None:
    """Any error can be answered outside of an application, too, with its own status."""
    detail = create_error_detail_with_context(code, "m", "svc", "op")
    response = create_error_response(detail)
    assert response.status_code == ERROR_CODE_TO_HTTP_STATUS[code]
    assert json.loads(bytes(response.body))["error"]["code"] == code
    assert response.headers["X-Correlation-ID"] == str(detail.correlation_id)


def test_a_view_can_answer_with_an_error_and_a_status() -> None:
    """A status that no code stands for can be chosen where the error is answered."""
    detail = create_error_detail_with_context(ErrorCode.INVALID_REQUEST, "m", "svc", "op")
    assert create_error_response(detail, 410).status_code == 410


async def test_an_id_is_made_once_for_each_request(client: httpx.AsyncClient) -> None:
    """Log lines and error body of one request agree; those of two requests do not."""
    first, second = [(await client.get("/ids")).json() for _ in range(2)]
    assert first[0] == first[1]
    assert second[0] == second[1]
    assert first[0] != second[0]


def test_an_id_can_be_asked_for_outside_of_an_application() -> None:
    """A request that is not being served, as in a test, has an id too."""
    scope: dict[str, Any] = {"type": "http", "headers": [], "query_string": b""}
    made = extract_correlation_id(Request(scope))
    assert made.version == 4
    assert extract_correlation_id(Request(scope)) == made
    headers = [(b"x-correlation-id", CALLER_ID.encode())]
    sent = {"type": "http", "headers": headers, "query_string": b""}
    assert extract_correlation_id(Request(sent)) == UUID(CALLER_ID)


async def test_a_middlewares_error_is_answered_too() -> None:
    """What a middleware raises has the body and the status of any other error."""
    app = new_app()

    async def refuse(request: Request, _call_next: CallNext) -> Response:
        if request.url.path == "/ids":
            raise ZeroDivisionError("secret internals")
        limited(request)

    app.add_middleware(BaseHTTPMiddleware, dispatch=refuse)
    register_error_handlers(app)
    # Starlette raises such errors on, for the server to log.
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://essays") as client:
        refused = answer(await client.get("/crash", headers=WITH_ID))
        crashed = answer(await client.get("/ids", headers=WITH_ID))
    assert (refused.status, refused.error["code"]) == (429, "RATE_LIMIT")
    assert (crashed.status, crashed.error["code"]) == (500, "UNKNOWN_ERROR")
    assert refused.error["correlation_id"] == crashed.error["correlation_id"] == CALLER_ID


async def test_a_middleware_in_between_changes_nothing(logs: Logs) -> None:
    """An error passes through a middleware that streams as it does through any other."""
    app = new_app()

    async def pass_on(request: Request, call_next: CallNext) -> Response:
        return await call_next(request)

    register_error_handlers(app)
    app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)
    async with client_of(app) as client:
        assert answer(await client.get("/crash")).status == 500
        assert answer(await client.get("/nowhere")).status == 404
    assert [line["log_level"] for line in logs] == ["error", "info"]


async def test_a_middleware_learns_which_error_it_is() -> None:
    """Before a response begins, its error's code is known to those that it passes through."""
    codes: list[str | None] = []

    class Codes:
        def __init__(self, app: ASGIApp) -> None:
            self._app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            async def send_watched(message: Message) -> None:
                if message["type"] == "http.response.start":
                    codes.append(answered_error_code(scope))
                await send(message)

            await self._app(scope, receive, send_watched)

    async def refuse_essays(request: Request, call_next: CallNext) -> Response:
        if request.url.path != "/inner/essays":
            return await call_next(request)
        code = ClassManagementErrorCode.CLASS_NOT_FOUND
        return create_error_response(create_error_detail_with_context(code, "m", "svc", "op"))

    inner = new_app()
    register_error_handlers(inner)
    app = FastAPI()
    app.mount("/inner", inner)
    app.add_middleware(BaseHTTPMiddleware, dispatch=refuse_essays)
    app.add_middleware(Codes)
    async with client_of(app) as client:
        for path in ("limited", "crash", "nowhere", "search", "essays", "ids", "moved"):
            await client.get(f"/inner/{path}")
    assert codes == [
        *("RATE_LIMIT", "UNKNOWN_ERROR", "RESOURCE_NOT_FOUND", "VALIDATION_ERROR"),
        *("CLASS_NOT_FOUND", None, None),
    ]


async def test_a_mounted_application_answers_for_itself(logs: Logs) -> None:
    """An application within another one names itself in its errors, each logged once."""
    inner = FastAPI(title="Inner Service")
    inner.include_router(views)
    register_error_handlers(inner)
    outer = FastAPI(title="Outer Service")
    outer.mount("/inner", inner)
    register_error_handlers(outer)
    async with client_of(outer) as client:
        paths = ("/inner/crash", "/inner/nowhere", "/nowhere")
        answers = [answer(await client.get(path)) for path in paths]
    assert [(given.status, given.error["service"]) for given in answers] == [
        (500, "inner_service"),
        (404, "inner_service"),
        (404, "outer_service"),
    ]
    assert [line["operation"] for line in logs] == ["crash", "unrouted", "unrouted"]


async def test_handlers_come_before_the_start(app: FastAPI, client: httpx.AsyncClient) -> None:
    """Who registers the handlers too late is told so."""
    await client.get("/nowhere")
    with pytest.raises(RuntimeError, match="before the application starts"):
        register_error_handlers(app)


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/ws/crash", 500, "UNKNOWN_ERROR"),
        ("/ws/limited", 429, "RATE_LIMIT"),
        ("/ws/forbidden", 403, "AUTHORIZATION_ERROR"),
        ("/ws/search?limit=hunter2", 422, "VALIDATION_ERROR"),
    ],
)
async def test_an_upgrade_that_fails_is_answered_over_http(
    app: FastAPI, logs: Logs, path: str, status: int, code: str
) -> None:
    """A WebSocket client that is not let in can read why."""
    async with served(app) as address:
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"ws://{address}{path}", additional_headers=WITH_ID)
    response = refused.value.response
    assert response.body is not None
    given = answer(
        httpx.Response(
            response.status_code,
            headers=[
                (name, value)
                for name, value in response.headers.raw_items()
                if name.lower().startswith(("content-type", "x-"))
            ],
            content=bytes(response.body),
        )
    )
    assert given == Answer(
        status,
        {**given.error, "code": code, "correlation_id": CALLER_ID},
        {"content-type": ["application/json"], "x-correlation-id": [CALLER_ID]},
    )
    assert "hunter2" not in repr((given, logs))
    assert len(logs) == 1
