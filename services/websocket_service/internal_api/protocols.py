"""What the internal API needs of the service; `di.py` names what stands behind it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, TypeAlias

from huleedu_service_libs.connection_leases import Lease
from huleedu_service_libs.error_handling import HuleEduError
from huleedu_service_libs.history_pages import KeptNotification
from huleedu_service_libs.notification_ids import NotificationId
from huleedu_service_libs.notifications import Notification, NotificationReceipt
from huleedu_service_libs.revocation_list import Revocation
from services.websocket_service.frames import ResyncReason
from services.websocket_service.protocols import BackplaneUnavailableError

Outcome: TypeAlias = NotificationReceipt | HuleEduError | BackplaneUnavailableError
"""Published; refused before anything was sent; or not confirmed, and it may have been published."""


class PublisherProtocol(Protocol):
    """Tells users something."""

    async def publish_each(self, notifications: Sequence[Notification]) -> Sequence[Outcome]:
        """One outcome for each, in their order; raises none of them."""
        ...


@dataclass(frozen=True, slots=True)
class KeptHistory:
    """Part of a history, oldest first, and where the history stands."""

    notifications: Sequence[KeptNotification]
    newest: NotificationId | None
    """None where Redis knows of none."""


class KeptHistoryProtocol(Protocol):
    """Reads histories. All raise BackplaneUnavailableError."""

    async def newest(self, user_id: str, *, limit: int) -> KeptHistory:
        """The newest that are kept, whether they have expired or not."""
        ...

    async def after(self, user_id: str, id_: str, *, limit: int) -> KeptHistory | ResyncReason:
        """The first that followed the one with this id, or why nobody can tell which did."""
        ...


class PresenceProtocol(Protocol):
    """Who is connected to any process of the service. All raise BackplaneUnavailableError."""

    async def of_user(self, user_id: str) -> Sequence[Lease]:
        """One for each connection of the user."""
        ...

    async def users(self) -> Sequence[str]:
        """Who has any, sorted."""
        ...


class DisconnectingProtocol(Protocol):
    """Ends connections, whichever process has them. All raise BackplaneUnavailableError.

    HuleEduError (VALIDATION_ERROR) for what is no id.
    """

    async def disconnect_user(self, user_id: str, *, reconnect: bool) -> None:
        """All of a user's; with `reconnect` their clients are to come back."""
        ...

    async def disconnect_connection(self, connection_id: str, *, reconnect: bool) -> None:
        """One."""
        ...


class RevokingProtocol(Protocol):
    """Lets tokens count no more. All raise BackplaneUnavailableError.

    HuleEduError (VALIDATION_ERROR, `details.field`) for what is no id and for a moment that makes
    no sense.
    """

    async def revoke_token(self, token_id: str, *, expires_at: datetime | None) -> Revocation:
        """The one with this `jti`; `expires_at` is its `exp`, if that is known."""
        ...

    async def revoke_user(self, user_id: str, *, issued_before: datetime | None) -> Revocation:
        """All of the user's that were issued before the moment; without one, before now."""
        ...
