"""What has to be done for each connection from time to time."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime

from huleedu_service_libs.logging_utils import create_service_logger
from services.websocket_service import frames
from services.websocket_service.close_reasons import SILENT_CLIENT, TOKEN_EXPIRED
from services.websocket_service.connection import Connection
from services.websocket_service.frames import Dialect
from services.websocket_service.outbound import OutboundFrame

logger = create_service_logger(__name__)


@dataclass(frozen=True, slots=True)
class KeeperIntervals:
    """Seconds, as in the settings."""

    ping_interval_s: float
    idle_timeout_s: float


class ConnectionKeeper:
    """Pings, heartbeats, and the ends that nobody else notices: expiry and silence.

    Each connection has one timer, set to whatever is due next, so that one on which nothing is due
    costs nothing.
    """

    def __init__(self, intervals: KeeperIntervals, utc_now: Callable[[], datetime]) -> None:
        self._intervals = intervals
        self._utc_now = utc_now

    @contextlib.contextmanager
    def attending(self, connection: Connection) -> Iterator[None]:
        """Look after a connection that was just opened, until left."""
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle

        def attend() -> None:
            nonlocal timer
            due_in_s = self._intervals.ping_interval_s
            try:
                due_in_s = self.attend(connection, loop.time(), self._utc_now())
            except Exception:
                logger.exception("keeper failed", connection_id=connection.id)
            if not connection.closing.done():
                timer = loop.call_later(due_in_s, attend)

        timer = loop.call_later(self._due_in_s(connection, loop.time(), self._utc_now()), attend)
        try:
            yield
        finally:
            timer.cancel()

    def attend(self, connection: Connection, now: float, utc_now: datetime) -> float:
        """Do what is due; returns in how many seconds something will be again.

        `now` is the event loop's time in seconds.
        """
        interval_s = self._intervals.ping_interval_s
        if utc_now >= connection.expires_at:
            connection.close(TOKEN_EXPIRED)
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
        expires_in_s = (connection.expires_at - utc_now).total_seconds()
        # A clock that is set back, or a timer that comes early, must not make us spin.
        return max(0.001, min(due_at - now, expires_in_s))
