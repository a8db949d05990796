"""The seams of the service; `di.py` names what stands behind them."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol
from uuid import UUID

from huleedu_service_libs.auth.jwt_validation import JWTClaims
from huleedu_service_libs.history_pages import HistoryPage, Unproven
from huleedu_service_libs.notification_ids import NotificationId
from services.websocket_service.close_reasons import CloseReason
from services.websocket_service.connection import Connection
from services.websocket_service.continuity import Opening


class JWTValidatorProtocol(Protocol):
    """Turns a token into what it proves."""

    def validate(self, token: str, correlation_id: UUID) -> JWTClaims:
        """Raises HuleEduError: AUTHENTICATION_ERROR, or CONFIGURATION_ERROR for want of a key."""
        ...


class BackplaneUnavailableError(Exception):
    """The backplane does not answer, or refuses."""


class BackplaneProtocol(Protocol):
    """Where published notifications come from. All raise BackplaneUnavailableError."""

    def subscribe(self, channel: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Entered once a publish reaches the iterator; a `Gap` stands where some may be missing."""
        ...

    def get_user_channel(self, user_id: str) -> str:
        """The channel of one user."""
        ...

    async def newest(self, user_id: str) -> NotificationId:
        """The id of the user's newest durable notification, else the user's origin."""
        ...

    async def after(self, user_id: str, cursor: NotificationId) -> HistoryPage | Unproven:
        """A page of what followed the cursor in the user's history."""
        ...


class BackplaneHealthProtocol(Protocol):
    """Whether notifications can come."""

    @property
    def hears(self) -> bool:
        """True where what is published now would come, as was proven within the last seconds."""
        ...

    async def ping(self) -> None:
        """Raises BackplaneUnavailableError where it does not answer."""
        ...


class MessageListenerProtocol(Protocol):
    """Brings a user's publications to one connection."""

    async def listen(
        self, connection: Connection, payloads: AsyncIterator[bytes], opening: Opening
    ) -> CloseReason:
        """Offer what the client has missed, then each payload; returns why it had to stop."""
        ...


class SocketProtocol(Protocol):
    """One WebSocket as its session sees it. Every send waits for the peer as long as it takes."""

    async def accept(self, subprotocol: str | None) -> None:
        """Answer the upgrade; nothing happens where that is done already."""
        ...

    async def send(self, text: str) -> None:
        """Write one text frame."""
        ...

    async def receive(self) -> str | bytes:
        """The next message; never returns once the peer is gone: the session is cancelled."""
        ...

    async def close(self, code: int, reason: str) -> None:
        """Write the close frame."""
        ...
