"""Every error that leaves a Quart application wears the public body and is logged exactly once.

- Whatever happens, callers see `PublicErrorBody`, and the response's `X-Correlation-ID` is the id
  in the body.
- The id is that of the error, or else the one the caller sent, or else one made for the request,
  the same however often it is asked for.
- Handlers run in request and in WebSocket contexts: an error before a socket is accepted goes out
  as an HTTP response. After that Quart closes the socket with 1000, whatever a handler returns, so
  a WebSocket endpoint has to close with its own code.
- Causes and tracebacks go to the log only, and only defects of ours have a traceback there.
"""

import json
from http import HTTPStatus
from typing import Final
from uuid import UUID, uuid4

import structlog
from opentelemetry import trace
from pydantic import ValidationError
from quart import (
    Quart,
    Request,
    Response,
    Websocket,
    current_app,
    g,
    has_request_context,
    has_websocket_context,
    request,
    websocket,
)
from werkzeug.exceptions import HTTPException, InternalServerError

from common_core.error_enums import ErrorCode
from common_core.json_values import to_text
from common_core.models.error_models import ErrorDetail
from huleedu_service_libs.error_handling.correlation import (
    CORRELATION_ID_HEADER,
    CORRELATION_ID_QUERY_PARAMETER,
    parse_correlation_id,
)
from huleedu_service_libs.error_handling.error_detail_factory import (
    create_error_detail_with_context,
)
from huleedu_service_libs.error_handling.http_status import (
    ERROR_CODE_TO_HTTP_STATUS,
    error_code_for_http_status,
)
from huleedu_service_libs.error_handling.huleedu_error import HuleEduError
from huleedu_service_libs.error_handling.public_error import (
    public_error_body,
    public_validation_errors,
)

__all__ = [
    "ERROR_CODE_TO_HTTP_STATUS",
    "create_error_response",
    "extract_correlation_id",
    "register_error_handlers",
]

_MADE_ID: Final = "huleedu_made_correlation_id"


def register_error_handlers(app: Quart) -> None:
    """Answer every error of the application with the public body.

    `HuleEduError` gets the status of its code. Quart's own HTTP errors keep their status and
    headers (`Allow`, `Retry-After`, ...); redirects stay redirects. A `pydantic.ValidationError`
    that leaves a view is taken to be about the request: VALIDATION_ERROR, 400. A view that
    validates anything else (a stored value, another service's answer) has to catch it and say
    whose fault it is. All other exceptions are UNKNOWN_ERROR, 500.

    `app.config["SERVICE_NAME"]` is read when an error happens; without it the application's
    import name stands in.
    """
    app.register_error_handler(HuleEduError, _on_huleedu_error)
    app.register_error_handler(HTTPException, _on_http_exception)
    app.register_error_handler(ValidationError, _on_validation_error)
    app.register_error_handler(Exception, _on_unexpected)


def create_error_response(
    error_detail: ErrorDetail, status_code: int | None = None
) -> tuple[Response, int]:
    """What a view returns for an error: the response, and its status again, as Quart has it.

    The status is the code's own unless one is given (426 for a plain GET of a WebSocket route).
    Needs no application context and logs nothing.
    """
    status = (
        ERROR_CODE_TO_HTTP_STATUS[error_detail.error_code] if status_code is None else status_code
    )
    response = Response(
        json.dumps(public_error_body(error_detail), allow_nan=False),
        status=status,
        content_type="application/json",
        headers={CORRELATION_ID_HEADER: str(error_detail.correlation_id)},
    )
    return response, status


def extract_correlation_id(request: Request | Websocket) -> UUID:
    """The caller's id: header `X-Correlation-ID`, else query `correlation_id`, else a new one.

    What is sent and is no UUID counts as not sent. For the connection being served, the new id is
    made once, so that a view's log lines and the error body agree.
    """
    sent = parse_correlation_id(
        request.headers.get(CORRELATION_ID_HEADER),
        request.args.get(CORRELATION_ID_QUERY_PARAMETER),
    )
    if sent is not None:
        return sent
    return _made_for_connection(request) if _is_being_served(request) else uuid4()


def _is_being_served(candidate: Request | Websocket) -> bool:
    return (has_request_context() and request == candidate) or (
        has_websocket_context() and websocket == candidate
    )


def _made_for_connection(connection: Request | Websocket) -> UUID:
    # `g` outlives a request in tests that push an application context around several of them, and
    # the ASGI scope does not.
    scope, made = g.get(_MADE_ID, (None, None))
    if scope is not connection.scope or not isinstance(made, UUID):
        made = uuid4()
        setattr(g, _MADE_ID, (connection.scope, made))
    return made


def _connection() -> Request | Websocket:
    return request if has_request_context() else websocket


async def _on_huleedu_error(error: HuleEduError) -> tuple[Response, int]:
    return _log_and_respond(error.error_detail)


async def _on_http_exception(error: HTTPException) -> tuple[Response, int] | HTTPException:
    if isinstance(error, InternalServerError) and error.original_exception is not None:
        # Raised outside of the view (in an after-request function, say). Quart has logged it, with
        # its traceback.
        return _after_quart_logged(error.original_exception)
    if error.code is None or error.code < HTTPStatus.BAD_REQUEST or error.response is not None:
        # A redirect, or a response that somebody made on purpose.
        return error
    detail = _detail(
        error_code_for_http_status(error.code),
        to_text(error.description or error.name),
        {},
    )
    response, status = _log_and_respond(detail, error.code)
    for name, value in error.get_headers():
        if name.lower() not in {"content-type", "content-length"}:
            response.headers.add(name, value)
    return response, status


async def _on_validation_error(error: ValidationError) -> tuple[Response, int]:
    # No traceback in the log either: the exception's text quotes the input.
    problems = public_validation_errors(error.errors(include_url=False))
    return _log_and_respond(
        _detail(
            ErrorCode.VALIDATION_ERROR,
            problems[0]["message"],
            {"validation_errors": problems},
        ),
        model=error.title,
    )


async def _on_unexpected(error: Exception) -> tuple[Response, int]:
    detail = _unknown_error(error)
    # The tracing middleware only sees the response that this becomes.
    trace.get_current_span().record_exception(error)
    structlog.get_logger(__name__).error(
        "unexpected exception",
        correlation_id=str(detail.correlation_id),
        service=detail.service,
        operation=detail.operation,
        exc_info=error,
    )
    return create_error_response(detail)


def _after_quart_logged(error: BaseException) -> tuple[Response, int]:
    if isinstance(error, HuleEduError):
        return create_error_response(error.error_detail)
    return create_error_response(_unknown_error(error))


def _unknown_error(error: BaseException) -> ErrorDetail:
    return _detail(
        ErrorCode.UNKNOWN_ERROR,
        "An unexpected error occurred",
        {"error_type": type(error).__name__},
    )


def _detail(error_code: ErrorCode, message: str, details: dict[str, object]) -> ErrorDetail:
    connection = _connection()
    return create_error_detail_with_context(
        error_code,
        message,
        service=current_app.config.get("SERVICE_NAME") or current_app.name,
        operation=connection.endpoint or "unrouted",
        correlation_id=extract_correlation_id(connection),
        details=details,
        capture_stack=False,
    )


def _log_and_respond(
    detail: ErrorDetail, status_code: int | None = None, **context: object
) -> tuple[Response, int]:
    response, status = create_error_response(detail, status_code)
    log = structlog.get_logger(__name__)
    # Below 500 it is the caller's doing: worth a line, not somebody's attention.
    write = log.error if status >= HTTPStatus.INTERNAL_SERVER_ERROR else log.info
    write(
        "request failed",
        error_code=detail.error_code.value,
        status=status,
        message=detail.message,
        service=detail.service,
        operation=detail.operation,
        correlation_id=str(detail.correlation_id),
        **context,
    )
    return response, status
