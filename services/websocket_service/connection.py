"""One admitted connection: who it is, what waits for it, and why it ends."""

import asyncio
from dataclasses import dataclass
from datetime import datetime
from typing import NewType, Protocol
from uuid import UUID

from services.websocket_service.close_reasons import CloseReason
from services.websocket_service.frames import Dialect
from services.websocket_service.outbox import Outbox

UserId = NewType("UserId", str)
ConnectionId = NewType("ConnectionId", str)


class PeerProtocol(Protocol):
    """What the server knows of the other side, below the messages."""

    @property
    def last_heard(self) -> float:
        """The event loop's time in seconds at which the last byte came."""
        ...

    @property
    def close_code(self) -> int | None:
        """The code of the peer's own close frame, once there is one."""
        ...

    @property
    def violated(self) -> asyncio.Future[int]:
        """Done, with the close code that it deserves, once the peer has sent an invalid frame."""
        ...

    def ping(self) -> None:
        """Write a ping frame without waiting."""
        ...

    def finish(self) -> None:
        """Say below WebSocket that nothing more will be written."""
        ...

    def abort(self) -> None:
        """Drop the TCP connection, whatever is still unsent."""
        ...


@dataclass(slots=True, eq=False)
class Connection:
    """The state of one connection. It ends for exactly one reason: the first that is given."""

    id: ConnectionId
    user_id: UserId
    dialect: Dialect
    correlation_id: UUID
    expires_at: datetime
    outbox: Outbox
    closing: asyncio.Future[CloseReason]
    opened_at: float
    """The event loop's time in seconds, as all others here."""
    last_written_at: float
    last_pinged_at: float
    peer: PeerProtocol | None = None
    """None under a server that does not tell."""
    writing_since: float | None = None
    """Set while a write waits for the peer."""

    def close(self, reason: CloseReason) -> None:
        """Ask for the end; what was asked for first stands."""
        if not self.closing.done():
            self.closing.set_result(reason)
