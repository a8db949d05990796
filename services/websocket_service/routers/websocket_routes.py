"""`/ws`: the WebSocket itself, and the answer to those who come without an upgrade."""

from typing import Any

from dishka import FromDishka
from quart import Blueprint, Response, Websocket, request, websocket
from quart_dishka import inject

from common_core.error_enums import ErrorCode
from huleedu_service_libs.error_handling import create_error_detail_with_context
from huleedu_service_libs.error_handling.quart import (
    create_error_response,
    extract_correlation_id,
)
from services.websocket_service.config import Settings
from services.websocket_service.credentials import SCOPE_KEY, Credentials
from services.websocket_service.hypercorn_tuning import PEER_EXTENSION
from services.websocket_service.session import SessionServer
from services.websocket_service.upgrade import Upgrade

websocket_blueprint = Blueprint("websocket", __name__)


class QuartSocket:
    """A Quart WebSocket as a session sees it."""

    def __init__(self, socket: Websocket) -> None:
        self._socket = socket

    async def accept(self, subprotocol: str | None) -> None:
        await self._socket.accept(subprotocol=subprotocol)

    async def send(self, text: str) -> None:
        await self._socket.send(text)

    async def receive(self) -> str | bytes:
        # Quart turns an empty binary message into None.
        message: str | bytes | None = await self._socket.receive()
        return b"" if message is None else message

    async def close(self, code: int, reason: str) -> None:
        await self._socket.close(code, reason)


@websocket_blueprint.websocket("/ws", strict_slashes=False)
@inject
async def notifications(sessions: FromDishka[SessionServer]) -> None:
    """The notifications of the user whom the credential names."""
    # Not the proxy: the session's tasks are not to depend on Quart's context.
    socket: Websocket = websocket._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001 - a Werkzeug proxy's documented method
    scope: dict[str, Any] = {**socket.scope}
    origins = socket.headers.getlist("Origin")
    upgrade = Upgrade(
        correlation_id=extract_correlation_id(socket),
        credentials=scope.get(SCOPE_KEY, Credentials()),
        requested_subprotocols=socket.requested_subprotocols,
        # Several are no origin that could be listed.
        origin=", ".join(origins) if origins else None,
        peer=(scope.get("extensions") or {}).get(PEER_EXTENSION),
        # Empty where a client writes it without having one.
        cursor=socket.args.get("cursor") or None,
    )
    await sessions.serve(QuartSocket(socket), upgrade)


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
