"""The gateway speaks no WebSocket: an upgrade is answered as the GET that it also is."""

from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_DENIAL_RESPONSE: Final = "websocket.http.response"
_SCHEMES: Final = {"ws": "http", "wss": "https"}


class PlainHttp:
    """Makes HTTP requests of upgrades, for all that is inside of it: routes, errors, metrics.

    ASGI servers make another kind of connection of them. One that has no means to answer it over
    HTTP refuses it with a 403 of its own.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            await self._app(scope, receive, send)
        elif _DENIAL_RESPONSE in scope.get("extensions", {}):
            await self._answer(scope, receive, send)
        else:
            await send({"type": "websocket.close"})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        as_http = {name: value for name, value in scope.items() if name != "subprotocols"}
        as_http |= {
            "type": "http",
            "method": "GET",
            "scheme": _SCHEMES[scope["scheme"]],
            "extensions": {},
        }

        async def receive_as_http() -> Message:
            message = await receive()
            if message["type"] == "websocket.connect":
                return {"type": "http.request", "body": b"", "more_body": False}
            return {"type": "http.disconnect"}

        async def send_as_denial(message: Message) -> None:
            # `http.response.start` and `http.response.body`; without extensions there are no more.
            await send({**message, "type": f"websocket.{message['type']}"})

        await self._app(as_http, receive_as_http, send_as_denial)
