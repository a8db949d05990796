"""Who is online, as the leases of connections tell."""

from collections.abc import Iterator, Sequence
from datetime import datetime

from huleedu_service_libs.connection_leases import Lease
from services.websocket_service.connection_ids import opened_at
from services.websocket_service.internal_api.models import Presence, PresencePage
from services.websocket_service.internal_api.protocols import PresenceProtocol


async def presence_of(presence: PresenceProtocol, user_id: str) -> Presence:
    """Raises BackplaneUnavailableError."""
    leases = await presence.of_user(user_id)
    return Presence(
        user_id=user_id,
        online=bool(leases),
        connections=len(leases),
        since=min(_beginnings(leases), default=None),
    )


async def presence_page(
    presence: PresenceProtocol, *, limit: int, after: str | None
) -> PresencePage:
    """The first `limit` users behind `after` who are online.

    Whoever has left since the users were listed is not among them. Raises
    BackplaneUnavailableError.
    """
    users = [user for user in await presence.users() if after is None or user > after]
    page = [await presence_of(presence, user) for user in users[:limit]]
    return PresencePage(
        users=[one for one in page if one.online],
        next=users[limit - 1] if len(users) > limit else None,
    )


def _beginnings(leases: Sequence[Lease]) -> Iterator[datetime]:
    for lease in leases:
        try:
            yield opened_at(lease.connection_id)
        except ValueError:
            # Somebody else has put it there.
            continue
