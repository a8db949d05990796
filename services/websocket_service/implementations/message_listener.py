"""The task that brings a user's publications to one connection."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from redis.exceptions import RedisError

from huleedu_service_libs.history_pages import HistoryPage, Loss, Unproven
from huleedu_service_libs.logging_utils import create_service_logger
from huleedu_service_libs.notification_ids import NotificationId, is_origin
from huleedu_service_libs.payload import Gap
from huleedu_service_libs.subscription import SubscriptionOverflowError
from services.websocket_service import frames
from services.websocket_service.close_reasons import SLOW_CONSUMER, TRY_LATER, CloseReason
from services.websocket_service.connection import Connection
from services.websocket_service.continuity import Continuity, Link, Opening, Verdict
from services.websocket_service.frames import Dialect, ResyncReason
from services.websocket_service.hub import ConnectionHub
from services.websocket_service.outbound import OutboundFrame
from services.websocket_service.protocols import (
    BackplaneProtocol,
    BackplaneUnavailableError,
    PayloadsProtocol,
)
from services.websocket_service.publication import Publication

logger = create_service_logger(__name__)

T = TypeVar("T")

# A history that can't be read for so long ends the connection: its client can resume elsewhere.
HISTORY_PATIENCE_S: Final = 10.0
FIRST_RETRY_DELAY_S: Final = 0.05
MAX_RETRY_DELAY_S: Final = 1.0

MISSED: Final = TRY_LATER.with_message("Notifications were missed")


class MessageListener:
    """Takes from a subscription and offers to an outbox, in order, without waiting for writes.

    Only a replay waits: for the client to have read one page before the next is fetched.
    """

    def __init__(
        self,
        hub: ConnectionHub,
        backplane: BackplaneProtocol,
        *,
        history_patience_s: float = HISTORY_PATIENCE_S,
    ) -> None:
        self._hub = hub
        self._backplane = backplane
        self._history_patience_s = history_patience_s

    async def listen(
        self, connection: Connection, payloads: PayloadsProtocol, opening: Opening
    ) -> CloseReason:
        feed = _Feed(
            self._hub,
            self._backplane,
            connection,
            Continuity(opening.position),
            history_patience_s=self._history_patience_s,
        )
        try:
            if opening.missed is not None:
                await feed.replay(opening.missed)
            while True:
                await feed.take(await payloads.next_batch())
        except _EndedError as ended:
            return ended.reason
        except SubscriptionOverflowError:
            return SLOW_CONSUMER
        except RedisError:
            # The backplane is closed, or does not allow the channel any more.
            return TRY_LATER


class _EndedError(Exception):
    """The connection has to be closed."""

    def __init__(self, reason: CloseReason) -> None:
        super().__init__(reason.message)
        self.reason = reason


class _Feed:
    """One connection's way from the backplane to its outbox. Raises `_EndedError`."""

    def __init__(
        self,
        hub: ConnectionHub,
        backplane: BackplaneProtocol,
        connection: Connection,
        continuity: Continuity,
        *,
        history_patience_s: float,
    ) -> None:
        self._counts = hub.counts
        self._backplane = backplane
        self._connection = connection
        self._continuity = continuity
        self._history_patience_s = history_patience_s
        # When the client was last told to fetch its state: what had come by then is part of that.
        self._resynced_at = float("-inf")

    async def take(self, batch: Sequence[bytes]) -> None:
        """Hand on live payloads, and before each what is missing; they leave together."""
        outbox = self._connection.outbox
        outbox.hold()
        try:
            for payload in batch:
                if not self._hand_on(payload):
                    await self._mend(payload)
                    outbox.hold()
        finally:
            outbox.release()

    def _hand_on(self, payload: bytes) -> bool:
        """False where something may be missing before it."""
        if isinstance(payload, Gap):
            return False
        publication = _publication(payload)
        link = publication.link
        if link is not None:
            verdict = self._continuity.judge(link)
            if verdict is Verdict.GAP:
                return False
            if verdict is Verdict.SEEN:
                return True
        if not self._is_offered(publication):
            raise _EndedError(SLOW_CONSUMER)
        return True

    async def _mend(self, payload: bytes) -> None:
        """Hand on, out of the history, what lies before a live payload, and itself."""
        if not await self._catch_up() or isinstance(payload, Gap):
            return
        publication = _publication(payload)
        link = publication.link
        if link is not None and not await self._accounts_for(link, publication.received_at):
            self._resync(ResyncReason.HISTORY_LOST, await self._newest())

    async def _accounts_for(self, link: Link, received_at: float) -> bool:
        """After the history was read to its end: whether the live notification is no loss."""
        if self._continuity.has_handed_on(link.id) or received_at <= self._resynced_at:
            return True
        if not self._continuity.may_be_behind(link):
            # The history should have had it: Redis has lost it, and perhaps more.
            return False
        # While Redis has two masters, this one may be heard from the one, and the history be that
        # of the other.
        found = await self._after(link.id)
        if isinstance(found, HistoryPage):
            self._continuity.look_back(found)
            return True
        # Of what is older than anything that is kept nobody can tell more.
        return found.loss is Loss.TRIMMED

    async def replay(self, page: HistoryPage) -> bool:
        """Hand on this page and all that follow; False where that can't be proven any more."""
        while True:
            self._continuity.read(page)
            await self._offer_all(page)
            self._counts.replayed += len(page.entries)
            if page.complete:
                return True
            await self._connection.outbox.settled()
            found = await self._after(self._continuity.position)
            if not isinstance(found, HistoryPage):
                await self._lost(found)
                return False
            page = found

    async def _offer_all(self, page: HistoryPage) -> None:
        outbox = self._connection.outbox
        outbox.hold()
        try:
            for entry in page.entries:
                publication = _publication(entry.payload)
                publication.is_replayed = True
                if not self._is_offered(publication):
                    # A page may be larger than the outbox.
                    await outbox.settled()
                    if not self._is_offered(publication):
                        raise _EndedError(SLOW_CONSUMER)
        finally:
            outbox.release()

    async def _catch_up(self) -> bool:
        found = await self._after(self._continuity.position)
        if isinstance(found, HistoryPage):
            return await self.replay(found)
        await self._lost(found)
        return False

    async def _lost(self, found: Unproven) -> None:
        self._resync(ResyncReason(found.loss.value), found.newest or await self._newest())

    def _resync(self, reason: ResyncReason, newest: NotificationId) -> None:
        never_any = is_origin(self._continuity.position) and is_origin(newest)
        self._continuity.restart(newest)
        if never_any and self._connection.dialect is Dialect.PLAIN:
            # Nobody publishes durably to this user, as far as can be told.
            return
        self._resynced_at = asyncio.get_running_loop().time()
        self._counts.resyncs[reason] += 1
        logger.warning(
            "notifications may be missing", connection_id=self._connection.id, reason=reason.value
        )
        if self._connection.dialect is Dialect.PLAIN:
            # No frame could say it, but a close can: whoever comes back fetches its state.
            raise _EndedError(MISSED)
        text = frames.resync(reason, None if is_origin(newest) else newest).encode()
        now = asyncio.get_running_loop().time()
        if not self._connection.outbox.offer(OutboundFrame(text, now)):
            raise _EndedError(SLOW_CONSUMER)

    def _is_offered(self, publication: Publication) -> bool:
        dialect = self._connection.dialect
        frame = publication.frame(dialect)
        if frame is None:
            self._counts.undeliverable += 1
            logger.warning(
                "payload undeliverable", dialect=dialect.value, payload_bytes=len(publication)
            )
            return True
        return self._connection.outbox.offer(frame)

    async def _after(self, id_: NotificationId) -> HistoryPage | Unproven:
        return await self._patiently(lambda: self._backplane.after(self._connection.user_id, id_))

    async def _newest(self) -> NotificationId:
        return await self._patiently(lambda: self._backplane.newest(self._connection.user_id))

    async def _patiently(self, read: Callable[[], Awaitable[T]]) -> T:
        """Repeat a read until Redis answers: what comes live must wait for what lies before it."""
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + self._history_patience_s
        delay_s = FIRST_RETRY_DELAY_S
        while True:
            try:
                return await read()
            except BackplaneUnavailableError as error:
                if loop.time() >= ends_at:
                    logger.error("history unreadable", cause=str(error))  # noqa: TRY400 - no defect
                    raise _EndedError(TRY_LATER) from error
            await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))
            delay_s = min(delay_s * 2, MAX_RETRY_DELAY_S)


def _publication(payload: bytes) -> Publication:
    if isinstance(payload, Publication):
        return payload
    publication = Publication(payload)
    publication.received_at = asyncio.get_running_loop().time()
    return publication
