from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from services.api_gateway_service.plain_http import PlainHttp


class Upgrade:
    """A client that asked for a WebSocket, as an ASGI server presents it."""

    def __init__(self, **scope: Any) -> None:
        self.scope: Scope = {
            "type": "websocket",
            "scheme": "wss",
            "path": "/healthz",
            "query_string": b"a=1",
            "headers": [(b"upgrade", b"websocket")],
            "subprotocols": ["huleedu.notify.v1"],
            **scope,
        }
        self._messages = [{"type": "websocket.connect"}, {"type": "websocket.disconnect"}]
        self.answer: list[Message] = []

    async def receive(self) -> Message:
        return self._messages.pop(0)

    async def send(self, message: Message) -> None:
        self.answer.append(message)


async def page(scope: Scope, receive: Receive, send: Send) -> None:
    """Says what it was asked and what it received."""
    received = [(await receive())["type"] for _ in range(2)]
    asked = f"{scope['type']} {scope['method']} {scope['scheme']} {scope['path']} {received}"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": asked.encode()})


async def test_an_upgrade_is_answered_as_a_get() -> None:
    """An application that knows HTTP alone serves a client that wanted a WebSocket."""
    client = Upgrade(extensions={"websocket.http.response": {}})
    await PlainHttp(page)(client.scope, client.receive, client.send)
    assert client.answer == [
        {"type": "websocket.http.response.start", "status": 200, "headers": []},
        {
            "type": "websocket.http.response.body",
            "body": b"http GET https /healthz ['http.request', 'http.disconnect']",
        },
    ]


@pytest.mark.parametrize("scope", [{}, {"extensions": {}}])
async def test_a_server_that_can_not_answer_refuses(scope: dict[str, Any]) -> None:
    """Where the server has no other means, the socket is closed before it is open."""
    client = Upgrade(**scope)
    await PlainHttp(page)(client.scope, client.receive, client.send)
    assert client.answer == [{"type": "websocket.close"}]
