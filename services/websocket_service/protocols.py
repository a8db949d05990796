"""The seams of the service; `di.py` names what stands behind them."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol
from uuid import UUID

from huleedu_service_libs.admission import Admission
from huleedu_service_libs.auth.jwt_validation import JWTClaims
from huleedu_service_libs.history_pages import HistoryPage, Unproven
from huleedu_service_libs.issued_ticket import IssuedTicket
from huleedu_service_libs.notification_ids import NotificationId
from services.websocket_service.close_reasons import CloseReason
from services.websocket_service.connection import Connection
from services.websocket_service.continuity import Opening
from services.websocket_service.outbound import OutboundFrame


class JWTValidatorProtocol(Protocol):
    """Turns a token into what it proves."""

    @property
    def problem(self) -> str | None:
        """Why no token can be verified now; None where they can."""
        ...

    async def validate(self, token: str, correlation_id: UUID) -> JWTClaims:
        """Raises HuleEduError.

        AUTHENTICATION_ERROR is the client's fault; for want of a key it is ours:
        CONFIGURATION_ERROR or CONNECTION_ERROR.
        """
        ...


class BackplaneUnavailableError(Exception):
    """The backplane does not answer, or refuses."""


class LeasesProtocol(Protocol):
    """Counts each user's connections over all processes."""

    @property
    def limit(self) -> int:
        """How many a user may have."""
        ...

    async def acquire(self, user_id: str, connection_id: str) -> Admission:
        """Take one of the user's places; raises BackplaneUnavailableError."""
        ...

    def release(self, user_id: str, connection_id: str) -> None:
        """Give it back, or what may have been taken by an `acquire` that failed."""
        ...


class RevocationsProtocol(Protocol):
    """Which tokens count no more."""

    @property
    def is_current(self) -> bool:
        """Whether all are known that there are, as far as can be told."""
        ...

    def is_known(self, claims: JWTClaims) -> bool:
        """True for a token that is known to be revoked, whether all that are are known or not."""
        ...

    async def is_revoked(self, claims: JWTClaims) -> bool:
        """Waits until it can be known, for a while.

        Raises BackplaneUnavailableError where it still can't be.
        """
        ...


class TicketsProtocol(Protocol):
    """Stand-ins for tokens, each good for one handshake. All raise BackplaneUnavailableError."""

    async def issue(self, claims: JWTClaims) -> IssuedTicket:
        """A new ticket for who the claims speak of."""
        ...

    async def redeem(self, ticket: str) -> JWTClaims | None:
        """What it was issued for, once; None for one that is unknown, used or too old."""
        ...


class PayloadsProtocol(Protocol):
    """What is published to a channel; a `Gap` stands where some may be missing."""

    async def next_batch(self) -> Sequence[bytes]:
        """All that waits, at least one, in order.

        Raises SubscriptionOverflowError, or redis-py's errors when the subscription has ended.
        """
        ...


class BackplaneProtocol(Protocol):
    """Where published notifications come from. All raise BackplaneUnavailableError."""

    def subscribe(self, channel: str) -> AbstractAsyncContextManager[PayloadsProtocol]:
        """Entered once what is published comes."""
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


class MetricsUnavailableError(Exception):
    """Nobody can say now what all workers have counted."""


class MetricsProtocol(Protocol):
    """What the whole service has measured, in however many processes it runs."""

    async def page(self) -> bytes:
        """Prometheus text. Raises MetricsUnavailableError."""
        ...

    async def connections(self) -> int:
        """How many there are now. Raises MetricsUnavailableError."""
        ...


class MessageListenerProtocol(Protocol):
    """Brings a user's publications to one connection."""

    async def listen(
        self, connection: Connection, payloads: PayloadsProtocol, opening: Opening
    ) -> CloseReason:
        """Offer what the client has missed, then each payload; returns why it had to stop."""
        ...


class SocketListenerProtocol(Protocol):
    """Hears what happens on one accepted WebSocket. Nothing here may wait."""

    def on_frame(self) -> bool:
        """A frame of whatever kind has come; False where it is one too many."""
        ...

    def on_message(self, message: str | bytes) -> None:
        """A whole text has come, or the beginning of a binary message."""
        ...

    def on_violation(self, code: int) -> None:
        """The peer has broken the protocol; `code` is the close code that it deserves."""
        ...

    def on_paused(self) -> None:
        """The peer does not take what is written: `writable` is False from now on."""
        ...

    def on_writable(self) -> None:
        """The peer has taken it."""
        ...

    def on_gone(self, close_code: int | None) -> None:
        """The peer has left: with its close frame's code, or None without one."""
        ...


class SocketProtocol(Protocol):
    """One WebSocket as its session sees it. Only what is a coroutine waits for the peer."""

    @property
    def writable(self) -> bool:
        """False while the peer does not take what was written before."""
        ...

    @property
    def last_heard_at(self) -> float | None:
        """The event loop's time in seconds of the last byte; None where the server hides it."""
        ...

    async def accept(self, subprotocol: str | None) -> None:
        """Answer the upgrade; nothing happens where that is done already."""
        ...

    def listen(self, listener: SocketListenerProtocol | None) -> None:
        """Tell `listener` from now on, beginning with what has come already; None: nobody."""
        ...

    def write(self, frames: Sequence[OutboundFrame]) -> None:
        """Write text frames without waiting, in one go."""
        ...

    def ping(self) -> None:
        """Write a ping without waiting, where the server lets us."""
        ...

    def close(self, code: int, reason: str) -> None:
        """Write the close frame without waiting."""
        ...

    async def gone(self) -> None:
        """Return once the peer has closed or is lost."""
        ...

    def abort(self) -> None:
        """Drop the connection, whatever is still unsent."""
        ...
