"""One correlation id for a request: in its views, its log lines and its response."""

from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from huleedu_service_libs.error_handling.correlation import CORRELATION_ID_HEADER
from huleedu_service_libs.error_handling.fastapi_handlers import extract_correlation_id

__all__ = ["CorrelationIdMiddleware"]

_WITH_HEADERS: Final = frozenset(
    {"http.response.start", "websocket.accept", "websocket.http.response.start"}
)


class CorrelationIdMiddleware:
    """Settles the id that `extract_correlation_id` gives, and says it in logs and response.

    As `correlation_id` it is in all log lines that structlog writes for the request, those of a
    streamed body and of background tasks included. The response's `X-Correlation-ID` is left as it
    is where there is one: an error may have come with an id of its own.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        correlation_id = str(extract_correlation_id(HTTPConnection(scope)))

        async def send_with_id(message: Message) -> None:
            if message["type"] in _WITH_HEADERS:
                message.setdefault("headers", [])
                MutableHeaders(scope=message).setdefault(CORRELATION_ID_HEADER, correlation_id)
            await send(message)

        with bound_contextvars(correlation_id=correlation_id):
            await self._app(scope, receive, send_with_id)
