"""What one handshake asks for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from services.websocket_service.credentials import Credentials
from services.websocket_service.frames import SUBPROTOCOL_V1, Dialect


@dataclass(frozen=True, slots=True)
class Upgrade:
    """A WebSocket handshake, before anything is decided about it."""

    correlation_id: UUID
    credentials: Credentials
    requested_subprotocols: Sequence[str]
    origin: str | None
    """None where the client is no browser."""
    cursor: str | None = None
    """As the client gave it: the id of the last notification that it has handled."""
    address: str | None = None
    """On whose account the handshake goes; None where that can't be told."""
    trace_carrier: Mapping[str, str] | None = None
    """The headers that may hold a W3C trace context."""

    @property
    def dialect(self) -> Dialect:
        """v1 for those who ask for it."""
        return Dialect.V1 if SUBPROTOCOL_V1 in self.requested_subprotocols else Dialect.PLAIN

    @property
    def subprotocol(self) -> str | None:
        """What to select.

        A browser fails a connection whose answer selects none of the subprotocols it asked for,
        so one that asks for its `bearer.<jwt>` alone gets that back.
        """
        if self.dialect is Dialect.V1:
            return SUBPROTOCOL_V1
        return self.credentials.bearer_subprotocol
