"""One admitted connection: who it is, what waits for it, and why it ends."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import NewType, Protocol
from uuid import UUID

from huleedu_service_libs.auth import JWTClaims
from services.websocket_service.close_reasons import CloseReason
from services.websocket_service.frames import Dialect
from services.websocket_service.outbox import Outbox

UserId = NewType("UserId", str)
ConnectionId = NewType("ConnectionId", str)


class PeerProtocol(Protocol):
    """What has to be known of the far end to look after a connection."""

    @property
    def last_heard_at(self) -> float | None:
        """The event loop's time in seconds of the last byte; None where the server hides it."""
        ...

    def ping(self) -> None:
        """Write a ping without waiting."""
        ...

    def abort(self) -> None:
        """Drop the connection, whatever is still unsent."""
        ...


@dataclass(slots=True, eq=False)
class Connection:
    """The state of one connection. It ends for exactly one reason: the first that is given."""

    id: ConnectionId
    user_id: UserId
    dialect: Dialect
    correlation_id: UUID
    claims: JWTClaims
    """Of the token that counts: the one it came with, or a later one of the same user."""
    peer: PeerProtocol
    outbox: Outbox
    closing: asyncio.Future[CloseReason]
    opened_at: float
    """The event loop's time in seconds, as all others here."""
    last_written_at: float
    last_pinged_at: float
    notice_at: datetime | None = None
    """When the client is told that its token is about to expire; None once it has been."""
    on_renewed: Callable[[], None] | None = None

    def renew(self, claims: JWTClaims) -> None:
        """Let a new token of the same user take the place of the old one."""
        self.claims = claims
        if self.on_renewed is not None:
            self.on_renewed()

    def close(self, reason: CloseReason) -> None:
        """Ask for the end; what was asked for first stands."""
        if not self.closing.done():
            self.closing.set_result(reason)
