"""One suite for both web frameworks: the same error, the same answer."""

import asyncio
import json
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn
from uuid import UUID, uuid4

import httpx
import pytest
from fastapi import HTTPException
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr, ValidationError
from quart import abort
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import ServiceUnavailable, Unauthorized

from common_core.error_enums import AnyErrorCode, ErrorCode
from huleedu_service_libs import error_handling
from huleedu_service_libs.error_handling import (
    ERROR_CODE_TO_HTTP_STATUS,
    HuleEduError,
    create_error_detail_with_context,
    raise_processing_error,
)
from libs.huleedu_service_libs.tests.error_handling.test_factories import CONTRACT, OPTIONAL
from libs.huleedu_service_libs.tests.error_handling.web_apps import (
    BODY_LIMIT_BYTES,
    Answer,
    Credentials,
    answer,
    client_of,
    fastapi_app,
    quart_app,
)

CALLER_ID = "5b0c1111-2222-4333-8444-555566667777"
OTHER_ID = "0a0c1111-2222-4333-8444-555566667777"
Logs = list[Any]
# Tracebacks are many lines.
pytestmark = pytest.mark.usefixtures("logs")
WITH_ID = {"X-Correlation-ID": CALLER_ID}


class Colour(Enum):
    RED = "red"


class Essay(BaseModel):
    title: str
    key: SecretStr


class Unprintable:
    def __str__(self) -> str:
        raise ZeroDivisionError


class OwnError(Exception):
    pass


def cyclic() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


DETAILS: dict[str, Any] = {
    "uuid": UUID(CALLER_ID),
    "datetime": datetime(2026, 1, 1, tzinfo=UTC),
    "date": date(2026, 1, 1),
    "exception": ValueError("bad"),
    "exception without a message": OwnError(),
    "set": {1},
    "bytes": b"\xff\x00",
    "nan": float("nan"),
    "infinity": [float("inf"), float("-inf")],
    "cycle": cyclic(),
    "deep": nested(100),
    "secret": SecretStr("hunter2"),
    "lone surrogate": "a\ud800b",
    "huge integer": 10**400,
    "just over 64 bits": [2**63, -(2**63) - 1],
    "enum": Colour.RED,
    "model": Essay(title="t", key=SecretStr("hunter2")),
    "decimal": Decimal("1.10"),
    "path": Path("/essays"),
    "unprintable": Unprintable(),
    "odd keys": {1: "one", None: "none", "\ud800": "surrogate"},
    "ordered": OrderedDict(b=1, a=2),
    "control characters": "\x00\r\n\u2028",
}


class Both:
    """A client of each application, whose view does what a test says."""

    def __init__(self, quart: httpx.AsyncClient, fastapi: httpx.AsyncClient) -> None:
        self.quart = quart
        self.fastapi = fastapi
        self.views: dict[str, Callable[[], object]] = {}

    async def answers(self, view: Callable[[], object], **request: Any) -> tuple[Answer, Answer]:
        self.views["view"] = view
        return await self.request("GET", "/views/view", **request)

    async def request(self, method: str, path: str, **request: Any) -> tuple[Answer, Answer]:
        from_quart = await self.quart.request(method, path, **request)
        from_fastapi = await self.fastapi.request(method, path, **request)
        return answer(from_quart), answer(from_fastapi)


@pytest.fixture
async def both() -> AsyncIterator[Both]:
    views: dict[str, Callable[[], object]] = {}
    async with client_of(quart_app(views)) as quart, client_of(fastapi_app(views)) as fastapi:
        clients = Both(quart, fastapi)
        clients.views = views
        yield clients


def raising(error: Exception) -> Callable[[], NoReturn]:
    def view() -> NoReturn:
        raise error

    return view


def aborting(quart: Callable[[], object], fastapi: HTTPException) -> Callable[[], object]:
    """Quart's way to end a request first, FastAPI's the second time."""
    ways = iter([quart, raising(fastapi)])
    return lambda: next(ways)()  # noqa: PLW0108 - the next one each time


@pytest.mark.parametrize("code", ERROR_CODE_TO_HTTP_STATUS)
async def test_every_code_is_answered_alike(both: Both, code: AnyErrorCode) -> None:
    """A client can't tell from an error which framework a service is made with."""
    detail = create_error_detail_with_context(
        code, "Ünable", "svc", "op", UUID(CALLER_ID), {"batch": "b-1"}
    )
    quart, fastapi = await both.answers(raising(HuleEduError(detail)))
    assert quart == fastapi
    assert quart == Answer(
        ERROR_CODE_TO_HTTP_STATUS[code],
        {
            "code": code.value,
            "message": "Ünable",
            "correlation_id": CALLER_ID,
            "service": "svc",
            "details": {"batch": "b-1"},
        },
        {"content-type": ["application/json"], "x-correlation-id": [CALLER_ID]},
    )


@pytest.mark.parametrize("name", CONTRACT)
async def test_every_factory_is_answered_alike(both: Both, name: str) -> None:
    """Whichever way an error was raised, both frameworks say the same of it."""
    code, named, message = CONTRACT[name]
    positional = ["svc", "op", *named.values(), *([] if message else ["a message"])]
    factory = vars(error_handling)[f"raise_{name}"]

    def view() -> object:
        return factory(*positional, UUID(CALLER_ID), **OPTIONAL.get(name, {}), attempt=2)

    quart, fastapi = await both.answers(view)
    assert quart == fastapi
    assert (quart.status, quart.error["code"]) == (ERROR_CODE_TO_HTTP_STATUS[code], code.value)
    assert quart.error["details"] == {**named, **OPTIONAL.get(name, {}), "attempt": 2}


@pytest.mark.parametrize("kind", DETAILS)
async def test_details_of_any_type_are_answered_alike(both: Both, kind: str) -> None:
    """Whatever a developer puts into the details, both send the same JSON, and no secret."""

    def view() -> NoReturn:
        raise_processing_error("svc", "op", "m", UUID(CALLER_ID), value=DETAILS[kind])

    quart, fastapi = await both.answers(view)
    assert quart == fastapi
    assert quart.status == 500
    assert "hunter2" not in str(quart.error)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=20)
    | st.binary(max_size=20)
    | st.uuids()
    | st.datetimes()
    | st.decimals()
    | st.complex_numbers()
    | st.builds(ValueError, st.text(max_size=5)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3)
        | st.tuples(inner, inner)
        | st.frozensets(st.integers(), max_size=3)
    ),
    max_leaves=8,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(details=st.dictionaries(st.text(st.characters(), max_size=8), values, max_size=4))
def test_no_details_make_a_difference(details: dict[str, Any]) -> None:
    """No details, however odd, break an answer or tell the frameworks apart."""
    detail = create_error_detail_with_context(
        ErrorCode.PROCESSING_ERROR, "m", "svc", "op", UUID(CALLER_ID), details
    )

    async def ask() -> tuple[Answer, Answer]:
        views: dict[str, Callable[[], object]] = {"view": raising(HuleEduError(detail))}
        async with client_of(quart_app(views)) as quart, client_of(fastapi_app(views)) as fastapi:
            return (
                answer(await quart.get("/views/view")),
                answer(await fastapi.get("/views/view")),
            )

    quart, fastapi = asyncio.run(ask())
    assert quart == fastapi


@pytest.mark.parametrize(
    "error",
    [ZeroDivisionError("secret"), OwnError("secret"), ExceptionGroup("secret", [OwnError()])],
)
async def test_a_crash_is_answered_and_logged_alike(
    both: Both, logs: Logs, error: Exception
) -> None:
    """A defect shows nothing but its class, and is in the log once, with where it happened."""
    quart, fastapi = await both.answers(raising(error), headers=WITH_ID)
    assert quart == fastapi
    assert quart.status == 500
    assert quart.error == {
        "code": "UNKNOWN_ERROR",
        "message": "An unexpected error occurred",
        "correlation_id": CALLER_ID,
        "service": "essay_service",
        "details": {"error_type": type(error).__name__},
    }
    from_quart, from_fastapi = logs
    assert from_quart == from_fastapi
    assert from_quart == {
        "event": "unexpected exception",
        "log_level": "error",
        "correlation_id": CALLER_ID,
        "service": "essay_service",
        "operation": "call",
        "exc_info": error,
    }


async def test_a_wrong_address_is_answered_alike(both: Both) -> None:
    """A wrong address gets the same answer."""
    quart, fastapi = await both.request("GET", "/nowhere", headers=WITH_ID)
    assert quart == fastapi
    assert (quart.status, quart.error["code"]) == (404, "RESOURCE_NOT_FOUND")
    assert quart.error["message"] == "Not Found"


async def test_a_wrong_method_is_answered_alike(both: Both) -> None:
    """A client that used the wrong method learns which ones there are."""
    quart, fastapi = await both.request("DELETE", "/login", headers=WITH_ID)
    # Quart answers OPTIONS by itself; in FastAPI that is a middleware's.
    assert fastapi.headers.pop("allow") == ["POST"]
    (allowed,) = quart.headers.pop("allow")
    assert sorted(allowed.split(", ")) == ["OPTIONS", "POST"]
    assert quart == fastapi
    assert (quart.status, quart.error["code"]) == (405, "INVALID_REQUEST")
    assert quart.error["message"] == "Method Not Allowed"


async def test_too_large_a_body_is_answered_alike(both: Both) -> None:
    """A body over the limit is refused with the status that says so."""

    async def chunks() -> AsyncIterator[bytes]:
        yield b'"' + b"x" * BODY_LIMIT_BYTES
        yield b'"'

    headers = {**WITH_ID, "Content-Type": "application/json"}
    # Each consumes a body of its own.
    quart = answer(await both.quart.post("/login", content=chunks(), headers=headers))
    fastapi = answer(await both.fastapi.post("/login", content=chunks(), headers=headers))
    assert quart == fastapi
    assert (quart.status, quart.error["code"]) == (413, "INVALID_REQUEST")
    assert quart.error["message"] == "Content Too Large"


@pytest.mark.parametrize("status", [400, 401, 404, 410, 413, 429, 500, 503])
async def test_a_status_without_words_is_answered_alike(both: Both, status: int) -> None:
    """A view that gives a status and no message has the status's name for one."""
    quart, fastapi = await both.answers(
        aborting(lambda: abort(status), HTTPException(status)), headers=WITH_ID
    )
    assert quart == fastapi
    assert quart.status == status


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 413, 418, 422, 429, 500, 503])
async def test_an_aborted_request_is_answered_alike(both: Both, status: int) -> None:
    """A view that ends a request with a status gets it out, in the usual body."""
    quart, fastapi = await both.answers(
        aborting(
            lambda: abort(status, "Short and stout"), HTTPException(status, "Short and stout")
        ),
        headers=WITH_ID,
    )
    assert quart == fastapi
    assert (quart.status, quart.error["message"]) == (status, "Short and stout")


async def test_headers_that_belong_to_a_status_are_kept_alike(both: Both) -> None:
    """A client is told when to come back and how to authenticate."""
    quart, fastapi = await both.answers(
        aborting(
            raising(ServiceUnavailable("Later", retry_after=7)),
            HTTPException(503, "Later", {"Retry-After": "7", "Content-Type": "text/html"}),
        ),
        headers=WITH_ID,
    )
    assert quart == fastapi
    assert quart.headers["retry-after"] == ["7"]
    quart, fastapi = await both.answers(
        aborting(
            raising(Unauthorized("Who?", www_authenticate=WWWAuthenticate("bearer"))),
            HTTPException(401, "Who?", {"WWW-Authenticate": "Bearer"}),
        ),
        headers=WITH_ID,
    )
    # A scheme's case does not count; werkzeug has its own way of writing it.
    assert quart.headers.pop("www-authenticate")[0].strip() == "Bearer"
    assert fastapi.headers.pop("www-authenticate") == ["Bearer"]
    assert quart == fastapi


@pytest.mark.parametrize(
    "sent",
    [{}, {"user": "u", "password": "hunter2"}, {"user": "u", "password": 10_000}, [], None, "text"],
)
async def test_a_body_that_does_not_fit_is_answered_alike(both: Both, sent: Any) -> None:
    """The client learns which fields are wrong, without its password being repeated."""
    headers = {**WITH_ID, "Content-Type": "application/json"}
    quart, fastapi = await both.request("POST", "/login", content=json.dumps(sent), headers=headers)
    assert quart == fastapi
    assert (quart.status, quart.error["code"]) == (400, "VALIDATION_ERROR")
    assert quart.error["message"] == quart.error["details"]["validation_errors"][0]["message"]
    assert "hunter2" not in str(quart.error)


@pytest.mark.parametrize("sent", [{}, {"user": [], "password": "hunter2"}])
async def test_a_parameter_that_does_not_fit_says_the_same_as_422(both: Both, sent: Any) -> None:
    """What FastAPI checks by itself is explained like the rest, with the status of its schema."""
    quart, _ = await both.request("POST", "/login", json=sent, headers=WITH_ID)
    fastapi = answer(await both.fastapi.post("/login-as-parameter", json=sent, headers=WITH_ID))
    # FastAPI publishes 422 for this in the OpenAPI schema of every view that has parameters, and
    # locates them in the request; Quart has no parameters, and a model of one's own is a 400.
    assert (quart.status, fastapi.status) == (400, 422)
    for problem in fastapi.error["details"]["validation_errors"]:
        assert problem["location"].pop(0) == "body"
    assert replace(fastapi, status=400) == quart


async def test_a_validation_error_of_no_field_is_answered_alike(both: Both) -> None:
    """A validation error that was made by hand, and lists nothing, is an answer as well."""
    error = ValidationError.from_exception_data("Credentials", [])
    quart, fastapi = await both.answers(raising(error), headers=WITH_ID)
    assert quart == fastapi
    assert (quart.status, quart.error["message"]) == (400, "Input is not valid")


@pytest.mark.parametrize(
    ("query", "headers", "taken"),
    [
        ("", WITH_ID, CALLER_ID),
        (f"correlation_id={OTHER_ID}", WITH_ID, CALLER_ID),
        (f"correlation_id={OTHER_ID}", {}, OTHER_ID),
        (f"correlation_id={OTHER_ID}", {"X-Correlation-ID": "42"}, OTHER_ID),
        (f"correlation_id={OTHER_ID}&correlation_id={CALLER_ID}", {}, OTHER_ID),
        ("", {"X-Correlation-ID": CALLER_ID.upper()}, CALLER_ID),
        ("", {"X-Correlation-ID": f"{{{CALLER_ID}}}"}, CALLER_ID),
    ],
)
async def test_the_callers_id_is_taken_alike(
    both: Both, query: str, headers: dict[str, str], taken: str
) -> None:
    """A caller's id is found in the header, else in the query."""
    both.views["view"] = raising(ZeroDivisionError())
    quart, fastapi = await both.request("GET", f"/views/view?{query}", headers=headers)
    assert quart == fastapi
    assert quart.error["correlation_id"] == taken


@pytest.mark.parametrize("sent", ["", "42", CALLER_ID + "0", "<script>", "\u00e9"])
async def test_what_is_no_uuid_is_replaced_alike(both: Both, sent: str) -> None:
    """Text that a caller makes up is not in the answer; each request gets an id of its own."""
    both.views["view"] = raising(ZeroDivisionError())
    quart, fastapi = await both.request(
        "GET", "/views/view", headers={"X-Correlation-ID": sent.encode()},
        params={"correlation_id": sent},
    )  # fmt: skip
    ids = {quart.error["correlation_id"], fastapi.error["correlation_id"]}
    assert len(ids) == 2
    assert {UUID(made).version for made in ids} == {4}


async def test_an_errors_own_id_wins_alike(both: Both) -> None:
    """An error that came with an id is answered with that, whatever the request's."""
    own = uuid4()

    def view() -> NoReturn:
        raise_processing_error("svc", "op", "m", own)

    quart, fastapi = await both.answers(view, headers=WITH_ID)
    assert quart == fastapi
    assert quart.error["correlation_id"] == str(own)


async def test_what_is_no_error_is_left_alone(both: Both) -> None:
    """A view that succeeds is answered as if there were no error handlers."""
    both.views["view"] = lambda: "fine"
    for client in (both.quart, both.fastapi):
        response = await client.get("/views/view")
        assert (response.status_code, response.text.strip('"')) == (200, "fine")
        assert "x-correlation-id" not in response.headers
        login = await client.post("/login", json=Credentials(user="u", password=1).model_dump())
        assert (login.status_code, login.text.strip('"')) == (200, "u")
