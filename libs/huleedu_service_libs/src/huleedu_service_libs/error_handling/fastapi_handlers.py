"""Every error that leaves a FastAPI application wears the public body and is logged exactly once.

- Whatever happens, callers see `PublicErrorBody`, and the response's `X-Correlation-ID` is the id
  in the body.
- The id is that of the error, or else the one of the request: see `extract_correlation_id`.
- Errors are answered inside of the application's middlewares, so that theirs (CORS, metrics)
  applies to the answer.
- A WebSocket that is not accepted yet is denied with the same body. After that Starlette and the
  server close it.
"""

import inspect
import re
from collections.abc import Mapping
from http import HTTPStatus
from http.client import responses
from typing import Final
from uuid import UUID, uuid4

from fastapi import FastAPI
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import (
    RequestValidationError,
    ResponseValidationError,
    WebSocketRequestValidationError,
)
from opentelemetry import trace
from opentelemetry.trace import Status, StatusCode
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from common_core.models.error_models import ErrorDetail
from huleedu_service_libs.error_handling.correlation import (
    CORRELATION_ID_HEADER,
    CORRELATION_ID_QUERY_PARAMETER,
    parse_correlation_id,
)
from huleedu_service_libs.error_handling.failed_request import (
    ErrorResponse,
    FailedRequest,
    log_failure,
    log_unexpected,
)
from huleedu_service_libs.error_handling.http_status import (
    CLIENT_CLOSED_REQUEST,
    ERROR_CODE_TO_HTTP_STATUS,
)
from huleedu_service_libs.error_handling.huleedu_error import HuleEduError
from huleedu_service_libs.error_handling.public_error import public_validation_errors
from huleedu_service_libs.middleware.exception_boundary import ExceptionBoundary

__all__ = [
    "ERROR_CODE_TO_HTTP_STATUS",
    "answered_error_code",
    "create_error_response",
    "extract_correlation_id",
    "register_error_handlers",
]

# In the ASGI scope, which middlewares and views of a request share.
_SCOPE_KEY: Final = "huleedu_service_libs.correlation_id"
_ERROR_CODE_SCOPE_KEY: Final = "huleedu_service_libs.error_code"
_UNPROCESSABLE_CONTENT: Final = 422
_ANSWERED_ERRORS: Final = (
    HuleEduError,
    HTTPException,
    RequestValidationError,
    ResponseValidationError,
    ValidationError,
    WebSocketRequestValidationError,
)


def register_error_handlers(app: FastAPI) -> None:
    """Answer every error of the application with the public body.

    `HuleEduError` gets the status of its code. Starlette's and FastAPI's HTTP errors keep their
    status and headers (`Allow`, `Retry-After`, ...); redirects stay redirects. A request that does
    not fit a view's parameters is VALIDATION_ERROR, 422. A `pydantic.ValidationError` that leaves a
    view is taken to be about the request: VALIDATION_ERROR, 400. All other exceptions are
    UNKNOWN_ERROR, 500. The service is the application's title in snake case.

    It may be called before or after the middlewares are added, but not after the application has
    started (`RuntimeError`). A middleware that has something to refuse returns
    `create_error_response`: what it raises is answered, but outside of all middlewares, and the
    server logs it. A mounted FastAPI application needs a call of its own.
    """
    if app.middleware_stack is not None:
        raise RuntimeError("Error handlers have to be registered before the application starts")
    answers = _Answers(app)
    for error_type in _ANSWERED_ERRORS:
        app.add_exception_handler(error_type, answers.on_error)
    app.add_exception_handler(Exception, answers.on_escaped)
    # The last one is the innermost, and `add_middleware` puts all others before it.
    app.user_middleware.append(Middleware(ExceptionBoundary, respond=answers.respond))


def create_error_response(error_detail: ErrorDetail, status_code: int | None = None) -> Response:
    """What a view or a middleware returns for an error.

    The status is the code's own unless one is given. Needs no application and logs nothing.
    """
    return _ErrorBody(error_detail, ErrorResponse.of(error_detail, status_code))


def answered_error_code(scope: Scope) -> str | None:
    """The code of the error that the request is answered with, for a middleware's `send`.

    It is known from the beginning of the response on, wherever that comes from; None for a response
    that is no such error.
    """
    code = scope.get(_ERROR_CODE_SCOPE_KEY)
    return code if isinstance(code, str) else None


def extract_correlation_id(request: HTTPConnection) -> UUID:
    """The caller's id: header `X-Correlation-ID`, else query `correlation_id`, else a new one.

    What is sent and is no UUID counts as not sent. It is settled when it is first asked for, by
    `CorrelationIdMiddleware` if there is one, and stays the same for the request.
    """
    settled = request.scope.get(_SCOPE_KEY)
    if isinstance(settled, UUID):
        return settled
    queried = request.query_params.getlist(CORRELATION_ID_QUERY_PARAMETER)
    correlation_id = (
        parse_correlation_id(request.headers.get(CORRELATION_ID_HEADER), *queried[:1]) or uuid4()
    )
    request.scope[_SCOPE_KEY] = correlation_id
    return correlation_id


class _Answers:
    def __init__(self, app: FastAPI) -> None:
        self._app = app

    async def on_error(self, connection: Request | WebSocket, error: Exception) -> Response:
        if isinstance(connection, WebSocket):
            # Whether it has been accepted, the boundary alone knows.
            raise error
        return await self.respond(connection, error)

    async def on_escaped(self, request: Request, error: Exception) -> Response:
        # Raised by a middleware, or too late to be answered. Starlette passes it on to the server,
        # which logs it with its traceback.
        if isinstance(error, ClientDisconnect):
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        if isinstance(error, _ANSWERED_ERRORS):
            return await self.respond(request, error)
        detail = self._failed(request).unexpected_error(error)
        return _log_and_respond(detail, error_type=type(error).__name__)

    async def respond(self, connection: HTTPConnection, error: Exception) -> Response:
        match error:
            case HuleEduError():
                return _log_and_respond(error.error_detail)
            case HTTPException():
                return await self._on_http_exception(connection, error)
            case RequestValidationError() | WebSocketRequestValidationError():
                detail = self._failed(connection).validation_error(error.errors())
                return _log_and_respond(detail, _UNPROCESSABLE_CONTENT)
            case ValidationError():
                # No traceback in the log either: the exception's text quotes the input.
                detail = self._failed(connection).validation_error(error.errors(include_url=False))
                return _log_and_respond(detail, model=error.title)
            case ResponseValidationError():
                # Nor here, where it would be that of FastAPI: the text quotes what a view returned.
                trace.get_current_span().set_status(Status(StatusCode.ERROR, type(error).__name__))
                detail = self._failed(connection).unexpected_error(error)
                return _log_and_respond(
                    detail, validation_errors=public_validation_errors(error.errors())
                )
            case _:
                detail = self._failed(connection).unexpected_error(error)
                log_unexpected(detail, error)
                return create_error_response(detail)

    async def _on_http_exception(
        self, connection: HTTPConnection, error: HTTPException
    ) -> Response:
        if isinstance(error.__cause__, ClientDisconnect):
            # FastAPI takes a body that breaks off for one that can't be parsed.
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        if error.status_code < HTTPStatus.BAD_REQUEST:
            # A redirect.
            return await http_exception_handler(Request(connection.scope), error)
        message, details = _message_and_details(error)
        detail = self._failed(connection).http_error(error.status_code, message, details)
        return _log_and_respond(detail, error.status_code, dict(error.headers or {}))

    def _failed(self, connection: HTTPConnection) -> FailedRequest:
        return FailedRequest(
            service=re.sub(r"\W+", "_", self._app.title.lower()).strip("_"),
            operation=_operation(connection.scope),
            correlation_id=extract_correlation_id(connection),
        )


def _message_and_details(error: HTTPException) -> tuple[str | None, dict[str, object]]:
    # FastAPI's own takes any JSON value.
    said: object = error.detail
    if not isinstance(said, str):
        return None, {"detail": said}
    # What Starlette writes where a view gives nothing.
    return (None if said == responses.get(error.status_code) else said), {}


def _operation(scope: Scope) -> str:
    endpoint = scope.get("endpoint")
    if inspect.isroutine(endpoint) or inspect.isclass(endpoint):
        return endpoint.__name__
    # None was found, or it is a mounted application.
    return "unrouted"


def _log_and_respond(
    detail: ErrorDetail,
    status: int | None = None,
    headers: Mapping[str, str] | None = None,
    **context: object,
) -> Response:
    response = ErrorResponse.of(detail, status, (headers or {}).items())
    log_failure(detail, response.status, **context)
    return _ErrorBody(detail, response)


class _ErrorBody(Response):
    def __init__(self, detail: ErrorDetail, response: ErrorResponse) -> None:
        super().__init__(response.body, response.status, media_type=response.content_type)
        for name, value in response.headers:
            self.headers.append(name, value)
        self._error_code = detail.error_code.value

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[_ERROR_CODE_SCOPE_KEY] = self._error_code
        await super().__call__(scope, receive, send)
