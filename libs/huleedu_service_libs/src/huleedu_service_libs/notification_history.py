"""A user's history: what was published durably, and what of it a reader has not seen."""

import secrets
from datetime import UTC, datetime
from typing import Final

from huleedu_service_libs.history_pages import HistoryPage, KeptNotification, Loss, Unproven
from huleedu_service_libs.history_scripts import READ_AFTER, READ_NEWEST, open_script
from huleedu_service_libs.notification_ids import NotificationId, offset_of
from huleedu_service_libs.notification_settings import HistoryLimits
from huleedu_service_libs.protocols import AtomicRedisClientProtocol
from huleedu_service_libs.redis_channels import DEFAULT_CHANNEL_PREFIX, UserKeys, user_channel

MAX_PAGE_ENTRIES: Final = 200
MAX_PAGE_BYTES: Final = 262_144


class NotificationHistory:
    """Reads histories. Every call raises redis-py's own exceptions."""

    def __init__(
        self,
        client: AtomicRedisClientProtocol,
        *,
        channel_prefix: str = DEFAULT_CHANNEL_PREFIX,
        limits: HistoryLimits | None = None,
    ) -> None:
        self._client = client
        self._channel_prefix = channel_prefix
        self._open_script = open_script(limits or HistoryLimits())

    async def newest(self, user_id: str) -> NotificationId:
        """The id of the newest notification; without one, the user's origin (`is_origin`).

        Either can be given to `after` later.
        """
        keys = self._keys(user_id)
        nonce = f"-{secrets.randbits(63)}"
        reply = await self._client.run_script(self._open_script, [keys.last, keys.history], [nonce])
        return NotificationId(reply.decode())

    async def after(
        self,
        user_id: str,
        cursor: NotificationId,
        *,
        max_entries: int = MAX_PAGE_ENTRIES,
        max_bytes: int = MAX_PAGE_BYTES,
    ) -> HistoryPage | Unproven:
        """What was published after `cursor`: a page, ended by whichever limit comes first."""
        keys = self._keys(user_id)
        status, *rest = await self._client.run_script(
            READ_AFTER, [keys.last, keys.history], [cursor, max_entries, max_bytes]
        )
        if status == b"unproven":
            return _unproven(cursor, *(text.decode() for text in rest))
        newest, position, complete, *entries = rest
        pairs = zip(entries[::2], entries[1::2], strict=True)
        return HistoryPage(
            newest=NotificationId(newest.decode()),
            position=NotificationId(position.decode()),
            complete=complete == 1,
            entries=tuple(
                KeptNotification(NotificationId(id_.decode()), payload) for id_, payload in pairs
            ),
        )

    async def kept(self, user_id: str, *, max_entries: int) -> list[KeptNotification]:
        """The newest entries, oldest first, whether they would be replayed or not."""
        reply = await self._client.run_script(
            READ_NEWEST, [self._keys(user_id).history], [max_entries]
        )
        entries = (_kept(id_, fields) for id_, fields in reversed(reply))
        return [entry for entry in entries if entry is not None]

    def _keys(self, user_id: str) -> UserKeys:
        return UserKeys.of(user_channel(user_id, self._channel_prefix))


def _kept(id_: bytes, fields: list[bytes]) -> KeptNotification | None:
    values = dict(zip(fields[::2], fields[1::2], strict=True))
    payload = values.get(b"d", b"")
    if not payload.startswith(b'{"id":"%b"' % id_):
        return None  # somebody else's, see `notification_scripts`
    expires_at_ms = values.get(b"x")
    return KeptNotification(
        NotificationId(id_.decode()),
        payload,
        datetime.fromtimestamp(int(expires_at_ms) / 1000, UTC) if expires_at_ms else None,
    )


def _unproven(cursor: NotificationId, newest: str, oldest: str) -> Unproven:
    if not newest:
        return Unproven(Loss.LOST, None)
    # Were it the predecessor of the oldest kept, it would have been proven. The history expires
    # before the key that names the newest id.
    first_known = (
        offset_of(NotificationId(oldest)) - 1 if oldest else offset_of(NotificationId(newest))
    )
    is_older = offset_of(cursor) < first_known
    return Unproven(Loss.TRIMMED if is_older else Loss.LOST, NotificationId(newest))
