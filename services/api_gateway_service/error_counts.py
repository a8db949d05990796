from prometheus_client import Counter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from huleedu_service_libs.error_handling.fastapi import answered_error_code
from huleedu_service_libs.middleware.route_pattern import route_pattern


class ErrorCounts:
    """Counts error responses by their code, wherever in the application they come from.

    `errors` has the labels `endpoint`, the route's pattern, and `error_code`.
    """

    def __init__(self, app: ASGIApp, errors: Counter) -> None:
        self._app = app
        self._errors = errors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        endpoint = route_pattern(scope)

        async def send_counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                code = answered_error_code(scope)
                if code is not None:
                    self._errors.labels(endpoint, code).inc()
            await send(message)

        await self._app(scope, receive, send_counting)
