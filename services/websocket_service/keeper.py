"""What has to be done for each connection from time to time: one task for all of them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime

from huleedu_service_libs.logging_utils import create_service_logger
from services.websocket_service import frames
from services.websocket_service.close_reasons import (
    SILENT_CLIENT,
    SLOW_CONSUMER,
    TOKEN_EXPIRED,
)
from services.websocket_service.connection import Connection
from services.websocket_service.frames import Dialect
from services.websocket_service.hub import ConnectionHub
from services.websocket_service.outbox import OutboundFrame

logger = create_service_logger(__name__)

# Nothing here needs finer timing than this, and a visit to each connection costs CPU.
MAX_TICK_S = 1.0


@dataclass(frozen=True, slots=True)
class KeeperIntervals:
    """Seconds, as in the settings."""

    ping_interval_s: float
    idle_timeout_s: float
    write_timeout_s: float

    @property
    def tick_s(self) -> float:
        """How often to look: often enough for the shortest interval."""
        shortest = min(self.ping_interval_s, self.idle_timeout_s, self.write_timeout_s)
        return min(MAX_TICK_S, shortest / 4)


class ConnectionKeeper:
    """Pings, heartbeats, and the ends that nobody else notices: expiry, silence, stuck writes."""

    def __init__(
        self, hub: ConnectionHub, intervals: KeeperIntervals, utc_now: Callable[[], datetime]
    ) -> None:
        self._hub = hub
        self._intervals = intervals
        self._utc_now = utc_now

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Look after the hub's connections until left."""
        task = asyncio.create_task(self._run(), name="connection-keeper")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._intervals.tick_s)
            now, utc_now = loop.time(), self._utc_now()
            for connection in self._hub.connections():
                try:
                    self.attend(connection, now, utc_now)
                except Exception:
                    # One connection's defect must not take expiry and pings from all others.
                    logger.exception("keeper failed", connection_id=connection.id)

    def attend(self, connection: Connection, now: float, utc_now: datetime) -> None:
        """Do for one connection what is due. `now` is the event loop's time in seconds."""
        intervals = self._intervals
        if utc_now >= connection.expires_at:
            connection.close(TOKEN_EXPIRED)
        writing_since = connection.writing_since
        if writing_since is not None and now - writing_since > intervals.write_timeout_s:
            connection.close(SLOW_CONSUMER)
        if (
            connection.dialect is Dialect.V1
            and writing_since is None
            and now - connection.last_written_at >= intervals.ping_interval_s
        ):
            heartbeat = frames.heartbeat(utc_now)
            connection.outbox.offer(OutboundFrame(heartbeat, len(heartbeat)))
        peer = connection.peer
        if peer is None:
            return
        if now - peer.last_heard > intervals.idle_timeout_s:
            connection.close(SILENT_CLIENT)
        if now - connection.last_pinged_at >= intervals.ping_interval_s:
            connection.last_pinged_at = now
            peer.ping()
