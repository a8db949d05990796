"""A user's history: what was published durably, and what of it a reader has not seen."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, Final

from redis import exceptions

from huleedu_service_libs.history_pages import HistoryPage, KeptNotification, Loss, Unproven
from huleedu_service_libs.history_scripts import READ_AFTER, READ_NEWEST, OpenScripts
from huleedu_service_libs.notification_ids import NotificationId, offset_of
from huleedu_service_libs.notification_settings import HistoryLimits
from huleedu_service_libs.protocols import AtomicRedisClientProtocol
from huleedu_service_libs.redis_channels import DEFAULT_CHANNEL_PREFIX, UserKeys, user_channel
from huleedu_service_libs.redis_commands import DEFAULT_TIMEOUT_S
from huleedu_service_libs.redis_script_batches import ScriptBatches
from huleedu_service_libs.redis_scripts import ScriptCall

MAX_PAGE_ENTRIES: Final = 200
MAX_PAGE_BYTES: Final = 262_144
PAGES_AT_ONCE: Final = 6
"""A storm of readers who are behind must leave Redis, and this process, time for all else."""
PAGE_QUEUE_TIMEOUT_S: Final = 10.0


class NotificationHistory:
    """Reads histories. Every call raises redis-py's own exceptions.

    Calls at the same time share round trips, so that ten thousand readers who have seen
    everything cost little. Pages for the others are read a few at a time. `timeout_s` bounds
    asking whether one is needed.
    """

    def __init__(
        self,
        client: AtomicRedisClientProtocol,
        *,
        channel_prefix: str = DEFAULT_CHANNEL_PREFIX,
        limits: HistoryLimits | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        self._client = client
        self._channel_prefix = channel_prefix
        self._scripts = OpenScripts.of(limits or HistoryLimits())
        self._batches = ScriptBatches(client, timeout_s=timeout_s)
        self._page_readers = asyncio.Semaphore(PAGES_AT_ONCE)

    async def aclose(self) -> None:
        """Fail those who wait with redis-py's `ConnectionError`."""
        await self._batches.aclose()

    async def newest(self, user_id: str) -> NotificationId:
        """The id of the newest notification; without one, the user's origin (`is_origin`).

        Either can be given to `after` later.
        """
        reply = await self._last(self._keys(user_id), f"-{secrets.randbits(63)}")
        return NotificationId(reply.decode())

    async def _last(self, keys: UserKeys, nonce: str) -> Any:
        scripts = self._scripts
        return await self._batches.run(
            ScriptCall(scripts.one, (keys.last, keys.history), (nonce,), scripts.joint)
        )

    async def after(
        self,
        user_id: str,
        cursor: NotificationId,
        *,
        max_entries: int = MAX_PAGE_ENTRIES,
        max_bytes: int = MAX_PAGE_BYTES,
    ) -> HistoryPage | Unproven:
        """What was published after `cursor`: a page, ended by whichever limit comes first.

        Raises redis-py's `TimeoutError` also where too many others wait for theirs.
        """
        keys = self._keys(user_id)
        if await self._last(keys, "") == cursor.encode():
            return HistoryPage(newest=cursor, position=cursor, complete=True, entries=())
        async with self._page_turn():
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

    @contextlib.asynccontextmanager
    async def _page_turn(self) -> AsyncIterator[None]:
        # Waiting for one's turn must not count against Redis, and must end when it is hung.
        try:
            async with asyncio.timeout(PAGE_QUEUE_TIMEOUT_S):
                await self._page_readers.acquire()
        except TimeoutError:
            raise exceptions.TimeoutError("too many histories are being read") from None
        try:
            yield
        finally:
            self._page_readers.release()

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
