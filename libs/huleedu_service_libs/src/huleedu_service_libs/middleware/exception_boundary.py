"""Where the exceptions end that an application's handlers have left."""

from collections.abc import Awaitable, Callable
from typing import Final

from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from huleedu_service_libs.error_handling.http_status import CLIENT_CLOSED_REQUEST

__all__ = ["ExceptionBoundary"]

_ANSWERS: Final = frozenset(
    {
        "http.response.start",
        "websocket.accept",
        "websocket.close",
        "websocket.http.response.start",
    }
)
_DENIAL_RESPONSE: Final = "websocket.http.response"


class ExceptionBoundary:
    """Turns exceptions into responses, as the innermost middleware of an application.

    Starlette's own place for that is outside of all middlewares, and there the exception goes on to
    the server after it has been answered: the response lacks what the middlewares add (CORS), and
    the server logs the exception again.

    - An exception after the response has begun goes on: only the server can break it off.
    - A client that has gone is no error; what is written then (499) is for the middlewares alone.
    - A WebSocket that is not accepted yet is denied over HTTP, if the server can do that.
    """

    def __init__(
        self,
        app: ASGIApp,
        respond: Callable[[HTTPConnection, Exception], Awaitable[Response]],
    ) -> None:
        self._app = app
        self._respond = respond

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        answered = False

        async def send_noting(message: Message) -> None:
            nonlocal answered
            answered = answered or message["type"] in _ANSWERS
            await send(message)

        try:
            await self._app(scope, receive, send_noting)
        except WebSocketDisconnect:
            return
        except ClientDisconnect:
            if not answered:
                await Response(status_code=CLIENT_CLOSED_REQUEST)(scope, receive, send)
        except Exception as error:
            if answered or not _can_be_answered(scope):
                raise
            response = await self._respond(HTTPConnection(scope), error)
            await response(scope, receive, send)


def _can_be_answered(scope: Scope) -> bool:
    return scope["type"] == "http" or _DENIAL_RESPONSE in scope.get("extensions", {})
