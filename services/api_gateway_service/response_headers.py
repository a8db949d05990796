"""Headers of a response that are known before there is one, and hold for errors too."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SCOPE_KEY: Final = "api_gateway.response_headers"


def add_response_headers(scope: Scope, headers: Mapping[str, str]) -> None:
    """Have the request answered with these, whatever the answer; inside `ResponseHeaders`."""
    scope[_SCOPE_KEY].update(headers)


class ResponseHeaders:
    """Writes what `add_response_headers` was given; a 401 says how to do better (RFC 9110)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        added: dict[str, str] = {}
        scope[_SCOPE_KEY] = added

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(added)
                if message["status"] == HTTPStatus.UNAUTHORIZED:
                    headers.setdefault("WWW-Authenticate", "Bearer")
            await send(message)

        await self._app(scope, receive, send_with_headers)
