from collections.abc import MutableMapping
from typing import Any

import pytest

from huleedu_service_libs.middleware.request_spans import RequestSpans


async def receive() -> MutableMapping[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


async def send(message: MutableMapping[str, Any]) -> None:
    assert message["type"].startswith("http.response.")


@pytest.mark.parametrize("kind", ["http", "websocket", "lifespan"])
async def test_an_application_gets_the_request_as_it_came(kind: str) -> None:
    """What is hidden from spans is there for the application, whatever bytes it is made of."""
    seen = []

    async def app(scope: MutableMapping[str, Any], _receive: object, _send: object) -> None:
        seen.append(scope)

    scope = {
        "type": kind,
        "method": "GET",
        "path": "/",
        "query_string": b"token=\xff\\x",
        "headers": [
            (name, b"\xff\xfe\\x")
            for name in (b"host", b"user-agent", b"traceparent", b"content-length", b"\xff\\x")
        ],
    }
    as_it_came = {**scope}
    await RequestSpans(app)(scope, receive, send)
    assert seen[0] is scope
    assert scope == as_it_came
