"""What has to be done for each connection from time to time."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import TracebackType

from huleedu_service_libs.logging_utils import create_service_logger
from services.websocket_service import frames
from services.websocket_service.close_reasons import (
    SILENT_CLIENT,
    SLOW_CONSUMER,
    TOKEN_EXPIRED,
)
from services.websocket_service.connection import Connection
from services.websocket_service.frames import Dialect
from services.websocket_service.outbound import OutboundFrame

logger = create_service_logger(__name__)


@dataclass(frozen=True, slots=True)
class KeeperIntervals:
    """Seconds, as in the settings."""

    ping_interval_s: float
    idle_timeout_s: float
    expiry_notice_s: float
    grace_period_s: float
    """After a token's expiry, for those who can send another one."""
    leeway_s: float
    """By which clocks may differ: a token counts for so much longer."""


class ConnectionKeeper:
    """Pings, heartbeats, and the ends that nobody else notices: expiry and silence.

    Each connection has one timer, set to whatever is due next, so that one on which nothing is due
    costs nothing.
    """

    def __init__(self, intervals: KeeperIntervals, utc_now: Callable[[], datetime]) -> None:
        self._intervals = intervals
        self._utc_now = utc_now

    def attending(self, connection: Connection) -> "_Attendance":
        """Look after a connection that was just opened, while entered."""
        return _Attendance(self, connection)

    def begin(self, connection: Connection) -> float:
        """Take note of the connection's token; returns in how many seconds something is due."""
        utc_now = self._utc_now()
        connection.notice_at = self._notice_at(connection, utc_now)
        return self._due_in_s(connection, asyncio.get_running_loop().time(), utc_now)

    def attend_now(self, connection: Connection) -> float:
        """Do what is due by the clocks; returns in how many seconds something will be again."""
        try:
            return self.attend(connection, asyncio.get_running_loop().time(), self._utc_now())
        except Exception:
            logger.exception("keeper failed", connection_id=connection.id)
            return self._intervals.ping_interval_s

    def attend(self, connection: Connection, now: float, utc_now: datetime) -> float:
        """Do what is due; returns in how many seconds something will be again.

        `now` is the event loop's time in seconds.
        """
        interval_s = self._intervals.ping_interval_s
        if utc_now >= self._ends_at(connection):
            connection.close(TOKEN_EXPIRED)
        elif connection.notice_at is not None and utc_now >= connection.notice_at:
            connection.notice_at = None
            left = connection.claims.expires_at - utc_now
            expires_in_ms = max(0, left // timedelta(milliseconds=1))
            text = frames.token_expiring(expires_in_ms).encode()
            if not connection.outbox.offer(OutboundFrame(text, now)):
                connection.close(SLOW_CONSUMER)
        last_heard_at = connection.peer.last_heard_at
        if last_heard_at is not None and now - last_heard_at >= self._intervals.idle_timeout_s:
            connection.close(SILENT_CLIENT)
        if now - connection.last_pinged_at >= interval_s:
            connection.last_pinged_at = now
            connection.peer.ping()
        if connection.dialect is Dialect.V1 and now - connection.last_written_at >= interval_s:
            # Ahead of the write, which may have to wait.
            connection.last_written_at = now
            if not len(connection.outbox):
                text = frames.heartbeat(utc_now).encode()
                connection.outbox.offer(OutboundFrame(text, now))
        return self._due_in_s(connection, now, utc_now)

    def _due_in_s(self, connection: Connection, now: float, utc_now: datetime) -> float:
        interval_s = self._intervals.ping_interval_s
        due_at = connection.last_pinged_at + interval_s
        if connection.dialect is Dialect.V1:
            due_at = min(due_at, connection.last_written_at + interval_s)
        last_heard_at = connection.peer.last_heard_at
        if last_heard_at is not None:
            due_at = min(due_at, last_heard_at + self._intervals.idle_timeout_s)
        word_at = connection.notice_at or self._ends_at(connection)
        # A clock that is set back, or a timer that comes early, must not make us spin.
        return max(0.001, min(due_at - now, (word_at - utc_now).total_seconds()))

    def _ends_at(self, connection: Connection) -> datetime:
        # Plain clients have no way to send another token.
        is_v1 = connection.dialect is Dialect.V1
        grace_s = self._intervals.leeway_s + (self._intervals.grace_period_s if is_v1 else 0)
        return _later(connection.claims.expires_at, grace_s)

    def _notice_at(self, connection: Connection, utc_now: datetime) -> datetime | None:
        if connection.dialect is not Dialect.V1:
            return None
        expires_at = connection.claims.expires_at
        # Of a token that lives for less than two notices, half of its life: who answers a notice
        # with another such token is not asked for the next one at once.
        left_s = (expires_at - utc_now).total_seconds()
        return _later(expires_at, -min(self._intervals.expiry_notice_s, max(0, left_s / 2)))


class _Attendance:
    """The timer of one connection, a context manager.

    One is kept for each connection: a generator with its closures would take a kilobyte more.
    """

    __slots__ = ("_connection", "_keeper", "_timer")

    def __init__(self, keeper: ConnectionKeeper, connection: Connection) -> None:
        self._keeper = keeper
        self._connection = connection
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        self._connection.on_renewed = self._begin
        self._begin()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._connection.on_renewed = None
        if self._timer is not None:
            self._timer.cancel()

    def _begin(self) -> None:
        self._set(self._keeper.begin(self._connection))

    def _attend(self) -> None:
        due_in_s = self._keeper.attend_now(self._connection)
        if not self._connection.closing.done():
            self._set(due_in_s)

    def _set(self, due_in_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(due_in_s, self._attend)


def _later(moment: datetime, seconds: float) -> datetime:
    """Within what a datetime can hold: a token may expire in the year 9999."""
    try:
        return moment + timedelta(seconds=seconds)
    except OverflowError:
        return moment
