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

from collections.abc import Iterable
from http import HTTPStatus
from typing import Final
from uuid import UUID, uuid4

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
from werkzeug.datastructures import Headers
from werkzeug.exceptions import HTTPException, InternalServerError

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
from huleedu_service_libs.error_handling.http_status import ERROR_CODE_TO_HTTP_STATUS
from huleedu_service_libs.error_handling.huleedu_error import HuleEduError

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
    return _quart_response(ErrorResponse.of(error_detail, status_code))


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
    said = None if error.description == type(error).description else error.description
    detail = _failed_request().http_error(error.code, said)
    return _log_and_respond(detail, error.code, error.get_headers())


async def _on_validation_error(error: ValidationError) -> tuple[Response, int]:
    # No traceback in the log either: the exception's text quotes the input.
    detail = _failed_request().validation_error(error.errors(include_url=False))
    return _log_and_respond(detail, model=error.title)


async def _on_unexpected(error: Exception) -> tuple[Response, int]:
    detail = _failed_request().unexpected_error(error)
    log_unexpected(detail, error)
    return create_error_response(detail)


def _after_quart_logged(error: BaseException) -> tuple[Response, int]:
    if isinstance(error, HuleEduError):
        return create_error_response(error.error_detail)
    return create_error_response(_failed_request().unexpected_error(error))


def _failed_request() -> FailedRequest:
    connection = _connection()
    return FailedRequest(
        service=current_app.config.get("SERVICE_NAME") or current_app.name,
        operation=connection.endpoint or "unrouted",
        correlation_id=extract_correlation_id(connection),
    )


def _log_and_respond(
    detail: ErrorDetail,
    status: int | None = None,
    headers: Iterable[tuple[str, str]] = (),
    **context: object,
) -> tuple[Response, int]:
    response = ErrorResponse.of(detail, status, headers)
    log_failure(detail, response.status, **context)
    return _quart_response(response)


def _quart_response(response: ErrorResponse) -> tuple[Response, int]:
    headers = Headers(response.headers)
    return (
        Response(
            response.body, response.status, content_type=response.content_type, headers=headers
        ),
        response.status,
    )
