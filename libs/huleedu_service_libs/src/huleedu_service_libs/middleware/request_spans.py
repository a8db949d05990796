"""A span for each HTTP request, which continues the trace of whoever sent it."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

__all__ = ["RequestSpans", "name_span_after"]

# ASGI's own terms; `Any` because the values of its dictionaries have all kinds of types.
_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_App = Callable[[_Scope, _Receive, _Send], Awaitable[None]]

_WHOLE_SCOPE: Final = "huleedu_service_libs.whole_scope"
_SHOWN_HEADERS: Final = frozenset({b"traceparent", b"tracestate", b"user-agent"})


class RequestSpans:
    """Makes them of the method, the path, the trace context and the user agent alone.

    Of the rest, the query is where people put tokens, and a header that is no text makes
    OpenTelemetry's middleware raise: one of those above that is not ASCII counts as not sent. A
    span is called after its method until `name_span_after` says more. Everything that is no HTTP
    request goes by without a span.
    """

    def __init__(self, app: _App) -> None:
        self._app = app
        self._traced = OpenTelemetryMiddleware(
            self._with_whole_scope, default_span_details=_details, exclude_spans=["receive", "send"]
        )

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        shown = {
            **scope,
            "query_string": b"",
            "headers": [
                (name, value)
                for name, value in scope["headers"]
                if name in _SHOWN_HEADERS and value.isascii()
            ],
            _WHOLE_SCOPE: scope,
        }
        await self._traced(shown, receive, send)

    async def _with_whole_scope(self, shown: _Scope, receive: _Receive, send: _Send) -> None:
        await self._app(shown[_WHOLE_SCOPE], receive, send)


def name_span_after(method: str, route: str) -> None:
    """Give the current request's span a name that many requests share.

    `route` is a pattern, such as `/v1/batches/{batch_id}/status`.
    """
    span = trace.get_current_span()
    span.update_name(f"{method} {route}")
    span.set_attribute("http.route", route)


def _details(scope: _Scope) -> tuple[str, dict[str, str]]:
    return scope["method"], {}
