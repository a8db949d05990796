"""How many requests there are, how they end and how long they take."""

from asyncio import CancelledError
from http import HTTPMethod, HTTPStatus
from time import perf_counter
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from huleedu_service_libs.error_handling.http_status import CLIENT_CLOSED_REQUEST
from huleedu_service_libs.middleware.route_pattern import route_pattern

__all__ = ["HttpMetricsMiddleware"]

_METHODS: Final = frozenset(HTTPMethod)
_OTHER_METHOD: Final = "OTHER"


class HttpMetricsMiddleware:
    """Counts and times the requests that reach it, under labels that clients can't multiply.

    `<prefix>_http_requests_total{method, endpoint, http_status}` and
    `<prefix>_http_request_duration_seconds{method, endpoint}`. The endpoint is the pattern of the
    route, prefixes and mounts included, or "unmatched"; a method that HTTP does not know is
    "OTHER". To know the routes it has to be added with the application's `add_middleware`.

    A request has ended when the last of its response is handed on, or when the application gives
    up: background tasks do not count. An exception that escapes is a 500, and so is a response
    without an end. A client that hung up before its response began, or a request that was
    cancelled until then, is a 499.
    """

    def __init__(self, app: ASGIApp, registry: CollectorRegistry, prefix: str) -> None:
        self._app = app
        self._requests = Counter(
            f"{prefix}_http_requests",
            "HTTP requests that have ended",
            ("method", "endpoint", "http_status"),
            registry=registry,
        )
        self._duration = Histogram(
            f"{prefix}_http_request_duration_seconds",
            "Time from a request to the end of its response",
            ("method", "endpoint"),
            registry=registry,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method = scope["method"] if scope["method"] in _METHODS else _OTHER_METHOD
        endpoint = route_pattern(scope)
        began = perf_counter()
        status = 0
        hung_up = ended = False

        def end(status: int) -> None:
            nonlocal ended
            if not ended:
                ended = True
                self._requests.labels(method, endpoint, str(status)).inc()
                self._duration.labels(method, endpoint).observe(perf_counter() - began)

        async def receive_watched() -> Message:
            nonlocal hung_up
            message = await receive()
            hung_up = hung_up or message["type"] == "http.disconnect"
            return message

        async def send_watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = CLIENT_CLOSED_REQUEST if hung_up else message["status"]
            elif _ends_response(message):
                # Before it is sent: who has the response finds it counted.
                end(status)
            await send(message)

        try:
            await self._app(scope, receive_watched, send_watched)
        except CancelledError:
            end(status or CLIENT_CLOSED_REQUEST)
            raise
        except BaseException:
            end(status if status >= HTTPStatus.BAD_REQUEST else HTTPStatus.INTERNAL_SERVER_ERROR)
            raise
        abandoned = CLIENT_CLOSED_REQUEST if hung_up else HTTPStatus.INTERNAL_SERVER_ERROR
        end(status or abandoned)


def _ends_response(message: Message) -> bool:
    return message["type"] == "http.response.pathsend" or (
        message["type"] == "http.response.body" and not message.get("more_body", False)
    )
