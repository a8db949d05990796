"""No request's body is larger than it may be, whatever its headers say."""

from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from huleedu_service_libs.error_handling.failed_request import FailedRequest, log_failure
from huleedu_service_libs.error_handling.fastapi import (
    create_error_response,
    extract_correlation_id,
)
from services.api_gateway_service.config import SERVICE_NAME


class RequestSizeLimit:
    """Answers 413 to more than `max_bytes`: at once if it is announced, else when it has come.

    FastAPI's `max_body_size` lets a view run first, and then answers in plain text. Nothing is
    kept here: a body is counted while the application reads it.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._message = f"The body has more than {max_bytes} bytes"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._is_too_large(Headers(scope=scope).get("content-length")):
            await self._refuse(scope, receive, send)
            return
        received_bytes = 0

        async def receive_counted() -> Message:
            nonlocal received_bytes
            message = await receive()
            received_bytes += len(message.get("body", b""))
            if received_bytes > self._max_bytes:
                # FastAPI would turn anything else that a body raises into a 400.
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, self._message)
            return message

        await self._app(scope, receive_counted, send)

    def _is_too_large(self, content_length: str | None) -> bool:
        # Servers answer what is no number themselves.
        return (
            content_length is not None
            and content_length.isdecimal()
            and int(content_length) > self._max_bytes
        )

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        failed = FailedRequest(
            SERVICE_NAME, "read_request", extract_correlation_id(HTTPConnection(scope))
        )
        detail = failed.http_error(status, self._message)
        log_failure(detail, status)
        await create_error_response(detail, status)(scope, receive, send)
