"""Whoever is answered before they have sent everything gets to read the answer."""

import asyncio
from contextlib import suppress
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LINGER_S: Final = 5
"""Seconds in which a client may go on sending after it was answered."""


class LingeringClose:
    """Sends all of an early answer but its end, and takes the rest of the request before that.

    With the end of a response, servers close a connection on which the request is still coming.
    The client's next bytes are then answered with a reset, which takes with it what the client has
    not read yet: the 401 or 413 that would have told why (RFC 9112, section 9.6).
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _has_body(scope):
            await self._app(scope, receive, send)
            return
        is_coming = True

        async def receive_noting() -> Message:
            nonlocal is_coming
            message = await receive()
            is_coming = message.get("more_body", False)
            return message

        async def send_patiently(message: Message) -> None:
            if is_coming and _ends_response(message):
                await send({**message, "more_body": True})
                with suppress(TimeoutError):
                    async with asyncio.timeout(LINGER_S):
                        while is_coming:
                            await receive_noting()
                message = {"type": "http.response.body"}
            await send(message)

        await self._app(scope, receive_noting, send_patiently)


def _has_body(scope: Scope) -> bool:
    # HTTP/2 ends a request without ending the connection.
    headers = Headers(scope=scope)
    return scope["http_version"].startswith("1") and (
        "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
    )


def _ends_response(message: Message) -> bool:
    return message["type"] == "http.response.body" and not message.get("more_body", False)
