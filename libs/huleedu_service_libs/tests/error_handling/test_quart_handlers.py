import json
from datetime import UTC, datetime
from enum import Enum
from typing import Any, NoReturn
from uuid import UUID, uuid4

import pytest
from opentelemetry.sdk.trace import TracerProvider
from pydantic import BaseModel
from quart import Blueprint, Quart, Response, abort, request, websocket
from quart.testing.connections import WebsocketResponseError
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import ServiceUnavailable, Unauthorized

from common_core.error_enums import AnyErrorCode, ErrorCode, FileValidationErrorCode
from huleedu_service_libs.error_handling import (
    ERROR_CODE_TO_HTTP_STATUS,
    HuleEduError,
    create_error_detail_with_context,
    raise_processing_error,
    raise_rate_limit_error,
)
from huleedu_service_libs.error_handling.quart import (
    create_error_response,
    extract_correlation_id,
    register_error_handlers,
)

CALLER_ID = "5b0c1111-2222-4333-8444-555566667777"
Logs = list[Any]


class Colour(Enum):
    RED = "red"


class Credentials(BaseModel):
    user: str
    password: int


views = Blueprint("views", __name__)


@views.get("/limited")
async def limited() -> NoReturn:
    raise_rate_limit_error(
        "essay_service", "list", 5, 60, "Slow down", extract_correlation_id(request)
    )


@views.get("/broken")
async def broken() -> NoReturn:
    raise_processing_error("essay_service", "grade", "Cannot grade", UUID(CALLER_ID))


@views.get("/odd")
async def odd() -> NoReturn:
    raise_processing_error(
        "essay_service",
        "grade",
        "Cannot grade",
        None,
        batch=UUID(CALLER_ID),
        at=datetime(2026, 1, 1, tzinfo=UTC),
        cause=ValueError("bad"),
        raw=b"\xff",
        ids={1},
        colour=Colour.RED,
        credentials=Credentials(user="u", password=1),
        ratio=float("nan"),
    )


@views.get("/crash")
async def crash() -> NoReturn:
    raise ZeroDivisionError("secret internals")


@views.post("/login")
async def login() -> str:
    return Credentials.model_validate(await request.get_json()).user


@views.get("/teapot")
async def teapot() -> NoReturn:
    abort(418, "Short and stout")


@views.get("/busy")
async def busy() -> NoReturn:
    raise ServiceUnavailable(retry_after=7)


@views.get("/who")
async def who() -> NoReturn:
    raise Unauthorized(www_authenticate=[WWWAuthenticate("bearer"), WWWAuthenticate("basic")])


@views.get("/own")
async def own() -> NoReturn:
    abort(Response("as I said", 409))


@views.get("/folder/")
async def folder() -> str:
    return "here"


@views.get("/upgrade")
async def upgrade() -> tuple[Response, int]:
    detail = create_error_detail_with_context(
        ErrorCode.INVALID_REQUEST, "WebSocket only", "essay_service", "ws"
    )
    return create_error_response(detail, 426)


@views.get("/ids")
async def ids() -> list[str]:
    return [str(extract_correlation_id(request)) for _ in range(2)]


@views.websocket("/ws/crash")
async def ws_crash() -> NoReturn:
    raise ZeroDivisionError("secret internals")


@views.websocket("/ws/limited")
async def ws_limited() -> NoReturn:
    raise_rate_limit_error(
        "essay_service", "list", 5, 60, "Slow down", extract_correlation_id(websocket)
    )


@pytest.fixture
def app() -> Quart:
    app = Quart("essays")
    app.config["SERVICE_NAME"] = "essay_service"
    app.register_blueprint(views)
    register_error_handlers(app)
    return app


async def get_error(response: Response) -> dict[str, Any]:
    """The error in a response whose frame is as it must always be."""
    raw = await response.get_data(as_text=False)
    body = json.loads(raw)
    assert response.content_type == "application/json"
    assert set(body) == {"error"}
    assert set(body["error"]) == {
        "code", "message", "correlation_id", "service", "timestamp", "details",
    }  # fmt: skip
    assert response.headers.getlist("X-Correlation-ID") == [body["error"]["correlation_id"]]
    assert datetime.fromisoformat(body["error"]["timestamp"]).tzinfo is not None
    assert b"Traceback" not in raw
    assert b"secret" not in raw
    error: dict[str, Any] = body["error"]
    return error


async def test_a_raised_error_becomes_its_response(app: Quart, logs: Logs) -> None:
    """The client gets the error's own code, message, details and the status that goes with it."""
    response = await app.test_client().get("/limited", headers={"X-Correlation-ID": CALLER_ID})
    assert response.status_code == 429
    error = await get_error(response)
    assert (error["code"], error["message"]) == ("RATE_LIMIT", "Slow down")
    assert error["details"] == {"limit": 5, "window_seconds": 60}
    assert error["correlation_id"] == CALLER_ID
    assert error["service"] == "essay_service"
    (line,) = logs
    assert (line["log_level"], line["status"], line["error_code"]) == ("info", 429, "RATE_LIMIT")


async def test_our_own_failures_are_logged_once_as_errors(app: Quart, logs: Logs) -> None:
    """Somebody is called for a failure of ours, once, and finds the request by its id."""
    response = await app.test_client().get("/broken")
    assert response.status_code == 500
    (line,) = logs
    assert (line["log_level"], line["correlation_id"]) == ("error", CALLER_ID)
    assert "exc_info" not in line


async def test_details_of_any_type_are_sent(app: Quart) -> None:
    """Whatever a developer put into the details, the client gets readable JSON."""
    response = await app.test_client().get("/odd")
    assert response.status_code == 500
    assert (await get_error(response))["details"] == {
        "batch": CALLER_ID,
        "at": "2026-01-01T00:00:00+00:00",
        "cause": "bad",
        "raw": "\\xff",
        "ids": [1],
        "colour": "red",
        "credentials": {"user": "u", "password": 1},
        "ratio": "nan",
    }


@pytest.mark.parametrize("testing", [True, False])
async def test_a_crash_tells_nothing_but_its_class(app: Quart, logs: Logs, testing: bool) -> None:
    """A defect of ours shows the client no internals, and us the whole traceback, once."""
    app.testing = testing
    response = await app.test_client().get("/crash", headers={"X-Correlation-ID": CALLER_ID})
    assert response.status_code == 500
    error = await get_error(response)
    assert (error["code"], error["message"]) == ("UNKNOWN_ERROR", "An unexpected error occurred")
    assert error["details"] == {"error_type": "ZeroDivisionError"}
    assert (error["correlation_id"], error["service"]) == (CALLER_ID, "essay_service")
    (line,) = logs
    assert (line["log_level"], line["correlation_id"]) == ("error", CALLER_ID)
    assert (line["operation"], type(line["exc_info"])) == ("views.crash", ZeroDivisionError)
    assert line["exc_info"].__traceback__ is not None


async def test_a_crash_is_recorded_in_its_trace(app: Quart) -> None:
    """The trace of a request that crashed holds the exception."""
    provider = TracerProvider(shutdown_on_exit=False)

    @app.get("/traced")
    async def traced() -> NoReturn:
        raise ZeroDivisionError

    with provider.get_tracer("test").start_as_current_span("request") as span:
        await app.test_client().get("/traced")
    (event,) = span.events  # type: ignore[attr-defined] # the SDK's span, which the API hides
    assert event.attributes["exception.type"] == "ZeroDivisionError"


async def test_an_unknown_path_is_not_found(app: Quart, logs: Logs) -> None:
    """A wrong address gets the same kind of answer as a missing resource."""
    response = await app.test_client().get("/nowhere", headers={"X-Correlation-ID": CALLER_ID})
    assert response.status_code == 404
    error = await get_error(response)
    assert (error["code"], error["correlation_id"]) == ("RESOURCE_NOT_FOUND", CALLER_ID)
    assert error["service"] == "essay_service"
    assert [line["log_level"] for line in logs] == ["info"]


async def test_a_wrong_method_is_told_the_right_ones(app: Quart) -> None:
    """A client that used the wrong method learns which ones there are."""
    response = await app.test_client().delete("/crash")
    assert response.status_code == 405
    assert (await get_error(response))["code"] == "INVALID_REQUEST"
    assert {method.strip() for method in response.headers["Allow"].split(",")} == {
        "GET", "HEAD", "OPTIONS",
    }  # fmt: skip


async def test_a_body_over_the_limit_is_refused(app: Quart) -> None:
    """Too large a body is refused with the status that says so."""
    app.config["MAX_CONTENT_LENGTH"] = 8
    response = await app.test_client().post("/login", json={"user": "u" * 50})
    assert response.status_code == 413
    assert (await get_error(response))["code"] == "INVALID_REQUEST"


async def test_bad_json_is_a_bad_request(app: Quart) -> None:
    """A body that is no JSON is the client's mistake."""
    response = await app.test_client().post(
        "/login", data="{", headers={"Content-Type": "application/json"}
    )
    assert response.status_code == 400
    assert (await get_error(response))["code"] == "INVALID_REQUEST"


async def test_a_wrong_body_is_explained_without_being_repeated(app: Quart, logs: Logs) -> None:
    """The client learns which fields are wrong, and neither it nor the log sees the password."""
    response = await app.test_client().post("/login", json={"password": "hunter2-secret"})
    assert response.status_code == 400
    error = await get_error(response)
    assert (error["code"], error["message"]) == ("VALIDATION_ERROR", "Field required")
    assert error["details"]["validation_errors"] == [
        {"location": ["user"], "type": "missing", "message": "Field required"},
        {
            "location": ["password"],
            "type": "int_parsing",
            "message": "Input should be a valid integer, unable to parse string as an integer",
        },
    ]
    (line,) = logs
    assert (line["log_level"], line["model"]) == ("info", "Credentials")
    assert "hunter2" not in repr(line)


@pytest.mark.parametrize(
    ("path", "status", "code", "message"),
    [
        ("/teapot", 418, "INVALID_REQUEST", "Short and stout"),
        ("/busy", 503, "SERVICE_UNAVAILABLE", "Service Unavailable"),
        ("/who", 401, "AUTHENTICATION_ERROR", "Unauthorized"),
    ],
)
async def test_an_aborted_request_keeps_its_status(
    app: Quart, path: str, status: int, code: str, message: str
) -> None:
    """A view that aborts with a status gets that status out, in the usual body."""
    response = await app.test_client().get(path)
    error = await get_error(response)
    assert (response.status_code, error["code"], error["message"]) == (status, code, message)


async def test_headers_that_belong_to_a_status_are_kept(app: Quart) -> None:
    """A client is told when to come back and how to authenticate."""
    client = app.test_client()
    assert (await client.get("/busy")).headers["Retry-After"] == "7"
    challenges = (await client.get("/who")).headers.getlist("WWW-Authenticate")
    assert [challenge.split()[0].lower() for challenge in challenges] == ["bearer", "basic"]


async def test_a_redirect_stays_a_redirect(app: Quart, logs: Logs) -> None:
    """A path without its slash leads to the one with it."""
    response = await app.test_client().get("/folder")
    assert response.status_code == 308
    assert response.location.endswith("/folder/")
    assert logs == []


async def test_trapped_exceptions_are_answered_the_same(app: Quart) -> None:
    """A developer's debugging setting does not turn redirects into errors."""
    app.config["TRAP_HTTP_EXCEPTIONS"] = True
    client = app.test_client()
    assert (await client.get("/folder")).status_code == 308
    assert (await client.get("/nowhere")).status_code == 404


async def test_a_response_made_on_purpose_is_left_alone(app: Quart) -> None:
    """A view that aborts with a response of its own gets exactly that out."""
    response = await app.test_client().get("/own")
    assert (response.status_code, await response.get_data(as_text=True)) == (409, "as I said")


async def test_a_view_can_answer_with_an_error_and_a_status(app: Quart) -> None:
    """A status that no code stands for can be chosen where the error is answered."""
    response = await app.test_client().get("/upgrade")
    assert response.status_code == 426
    assert (await get_error(response))["code"] == "INVALID_REQUEST"


@pytest.mark.parametrize("code", ERROR_CODE_TO_HTTP_STATUS)
async def test_every_code_has_a_response(code: AnyErrorCode) -> None:
    """Any error can be answered, outside of an application too, with its own status."""
    detail = create_error_detail_with_context(code, "m", "svc", "op")
    response, status = create_error_response(detail)
    assert status == response.status_code == ERROR_CODE_TO_HTTP_STATUS[code]
    assert (await get_error(response))["code"] == code


async def test_a_crash_after_the_view_wears_the_same_body(app: Quart, logs: Logs) -> None:
    """A failure while the response is being finished looks like any other, and is logged once."""

    @app.after_request
    async def fail(response: Response) -> Response:
        if request.path == "/ids":
            raise ZeroDivisionError("secret internals")
        return response

    app.config["PROPAGATE_EXCEPTIONS"] = False
    response = await app.test_client().get("/ids", headers={"X-Correlation-ID": CALLER_ID})
    assert response.status_code == 500
    error = await get_error(response)
    assert error["details"] == {"error_type": "ZeroDivisionError"}
    assert error["correlation_id"] == CALLER_ID
    assert logs == []  # Quart's own logger had it


async def test_an_error_raised_after_the_view_keeps_its_code(app: Quart) -> None:
    """An error of ours is not lost because of where it was raised."""

    @app.after_request
    async def fail(_: Response) -> NoReturn:
        detail = create_error_detail_with_context(
            FileValidationErrorCode.EMPTY_CONTENT, "m", "svc", "op"
        )
        raise HuleEduError(detail)

    app.config["PROPAGATE_EXCEPTIONS"] = False
    response = await app.test_client().get("/ids")
    assert response.status_code == 400
    assert (await get_error(response))["code"] == "EMPTY_CONTENT"


async def test_an_unnamed_service_has_its_import_name(app: Quart) -> None:
    """A service that forgot to say its name still answers."""
    del app.config["SERVICE_NAME"]
    assert (await get_error(await app.test_client().get("/crash")))["service"] == "essays"


async def test_the_callers_id_may_come_by_query(app: Quart) -> None:
    """A browser that cannot set headers can still say which request it means."""
    client = app.test_client()
    by_query = await client.get("/ids", query_string={"correlation_id": CALLER_ID})
    assert await by_query.get_json() == [CALLER_ID, CALLER_ID]
    other = str(uuid4())
    both = await client.get(
        "/ids", query_string={"correlation_id": other}, headers={"X-Correlation-ID": CALLER_ID}
    )
    assert await both.get_json() == [CALLER_ID, CALLER_ID]


@pytest.mark.parametrize("sent", ["", "42", "a\tb", CALLER_ID + "0", "<script>"])
async def test_what_is_no_uuid_is_replaced(app: Quart, logs: Logs, sent: str) -> None:
    """Text that a caller makes up reaches neither the response nor the log."""
    response = await app.test_client().get("/limited", headers={"X-Correlation-ID": sent})
    made = (await get_error(response))["correlation_id"]
    assert UUID(made).version == 4
    assert logs[0]["correlation_id"] == made


async def test_an_id_is_made_once_for_each_request(app: Quart) -> None:
    """Log lines and error body of one request agree; those of two requests do not."""
    async with app.app_context():
        client = app.test_client()
        first, second = [await (await client.get("/ids")).get_json() for _ in range(2)]
    assert first[0] == first[1]
    assert second[0] == second[1]
    assert first[0] != second[0]


async def test_an_id_can_be_asked_for_outside_of_a_request(app: Quart) -> None:
    """A request that is not being served, as in a test, has an id too."""
    async with app.test_request_context("/", headers={"X-Correlation-ID": CALLER_ID}):
        outside = request._get_current_object()  # type: ignore[attr-defined] # a werkzeug proxy
    assert extract_correlation_id(outside) == UUID(CALLER_ID)
    del outside.headers["X-Correlation-ID"]
    assert extract_correlation_id(outside) != extract_correlation_id(outside)


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/nowhere", 404, "RESOURCE_NOT_FOUND"),
        ("/crash", 400, "INVALID_REQUEST"),
        ("/ws/crash", 500, "UNKNOWN_ERROR"),
        ("/ws/limited", 429, "RATE_LIMIT"),
    ],
)
async def test_an_upgrade_that_fails_is_answered_over_http(
    app: Quart, logs: Logs, path: str, status: int, code: str
) -> None:
    """A WebSocket client that is not let in can read why."""
    connection = app.test_client().websocket(path, headers={"X-Correlation-ID": CALLER_ID})
    with pytest.raises(WebsocketResponseError) as refused:
        async with connection as socket:
            await socket.receive()
    response = refused.value.response
    error = await get_error(response)
    assert (response.status_code, error["code"]) == (status, code)
    assert error["correlation_id"] == CALLER_ID
    assert [line["correlation_id"] for line in logs] == [CALLER_ID]
