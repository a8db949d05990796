"""`/ws`: the WebSocket itself, and the answer to those who come without an upgrade."""

import json
from collections.abc import Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qsl
from uuid import UUID, uuid4

from dishka import AsyncContainer, FromDishka
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, WebsocketScope
from quart import Blueprint, Quart, Response, request
from quart_dishka import inject

from common_core.error_enums import ErrorCode
from huleedu_service_libs.error_handling import (
    create_error_detail_with_context,
    public_error_body,
)
from huleedu_service_libs.error_handling.correlation import (
    CORRELATION_ID_HEADER,
    CORRELATION_ID_QUERY_PARAMETER,
    parse_correlation_id,
)
from huleedu_service_libs.error_handling.quart import (
    create_error_response,
    extract_correlation_id,
)
from services.websocket_service.asgi_socket import AsgiSocket
from services.websocket_service.client_address import TrustedProxies
from services.websocket_service.config import Settings
from services.websocket_service.credentials import SCOPE_KEY, Credentials
from services.websocket_service.hypercorn_tuning import WIRE_EXTENSION
from services.websocket_service.routers.address_account import address_account
from services.websocket_service.session import SessionServer
from services.websocket_service.upgrade import Upgrade
from services.websocket_service.wire import WebSocketWire

websocket_blueprint = Blueprint("websocket", __name__)

_PATHS: Final = frozenset({"/ws", "/ws/"})


def serve_websockets(app: Quart, container: AsyncContainer) -> None:
    """Let `/ws` be served without Quart's contexts, and its queue and two tasks a connection.

    There is no WebSocket elsewhere. Quart's own answer to that would, from Python 3.13 on, keep the
    connection until its client hangs up.
    """

    class Notifications:
        def __init__(self, app: Quart, scope: WebsocketScope) -> None:  # noqa: ARG002 - Quart's
            self.scope = scope

        async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
            settings = await container.get(Settings)
            if self.scope["path"] not in _PATHS:
                await _refuse_elsewhere(settings.SERVICE_NAME, self.scope, send)
                return
            proxies = await container.get(TrustedProxies)
            upgrade = _upgrade(self.scope, address_account(self.scope, settings, proxies))
            sessions = await container.get(SessionServer)
            wire = _wire(self.scope)
            if wire is not None:
                await sessions.serve(wire, upgrade)
                return
            async with AsgiSocket(
                receive, send, max_message_bytes=settings.WEBSOCKET_MAX_MESSAGE_BYTES
            ) as socket:
                await sessions.serve(socket, upgrade)

    app.asgi_websocket_class = Notifications


async def _refuse_elsewhere(service: str, scope: Mapping[str, Any], send: ASGISendCallable) -> None:
    """404 with the error body, where the server lets us answer an upgrade over HTTP."""
    if "websocket.http.response" not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": 1000, "reason": None})
        return
    detail = create_error_detail_with_context(
        ErrorCode.RESOURCE_NOT_FOUND,
        "There is no WebSocket here: connect to /ws",
        service,
        "upgrade",
        _correlation_id(_headers(scope), _query(scope)),
        capture_stack=False,
    )
    body = json.dumps(public_error_body(detail)).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (CORRELATION_ID_HEADER.lower().encode(), str(detail.correlation_id).encode()),
    ]
    await send(
        {
            "type": "websocket.http.response.start",
            "status": HTTPStatus.NOT_FOUND,
            "headers": headers,
        }
    )
    await send({"type": "websocket.http.response.body", "body": body, "more_body": False})


def _wire(scope: Mapping[str, Any]) -> WebSocketWire | None:
    return (scope.get("extensions") or {}).get(WIRE_EXTENSION)


def _upgrade(scope: Mapping[str, Any], address: str | None) -> Upgrade:
    headers, query = _headers(scope), _query(scope)
    origins = list(_all(headers, b"origin"))
    return Upgrade(
        correlation_id=_correlation_id(headers, query),
        credentials=scope.get(SCOPE_KEY, Credentials()),
        requested_subprotocols=scope["subprotocols"],
        # Several are no origin that could be listed.
        origin=", ".join(origins) if origins else None,
        # Empty where a client writes it without having one.
        cursor=query.get("cursor") or None,
        address=address,
        trace_carrier={
            name.decode("latin1"): value
            for name, value in headers
            if name in {b"traceparent", b"tracestate"}
        },
    )


def _headers(scope: Mapping[str, Any]) -> list[tuple[bytes, str]]:
    return [(name.lower(), value.decode("latin1")) for name, value in scope["headers"]]


def _query(scope: Mapping[str, Any]) -> dict[str, str]:
    """Of two with one name the first counts."""
    return dict(reversed(parse_qsl(scope["query_string"].decode("latin1"), errors="replace")))


def _correlation_id(headers: Iterable[tuple[bytes, str]], query: Mapping[str, str]) -> UUID:
    correlation_id = parse_correlation_id(
        next(_all(headers, CORRELATION_ID_HEADER.lower().encode()), None),
        query.get(CORRELATION_ID_QUERY_PARAMETER),
    )
    return correlation_id or uuid4()


def _all(headers: Iterable[tuple[bytes, str]], wanted: bytes) -> Iterator[str]:
    return (value for name, value in headers if name == wanted)


@websocket_blueprint.get("/ws", strict_slashes=False)
@inject
async def upgrade_required(settings: FromDishka[Settings]) -> tuple[Response, int]:
    """426: this address speaks WebSocket only."""
    detail = create_error_detail_with_context(
        ErrorCode.INVALID_REQUEST,
        "This address speaks WebSocket: connect with ws:// or wss://",
        settings.SERVICE_NAME,
        "upgrade_required",
        extract_correlation_id(request),
        capture_stack=False,
    )
    response, status = create_error_response(detail, 426)
    response.headers["Upgrade"] = "websocket"
    response.headers["Connection"] = "Upgrade"
    return response, status
