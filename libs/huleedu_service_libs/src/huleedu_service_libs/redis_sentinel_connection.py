"""Pooled connections that are to the master, whichever server that is."""

from typing import Any

from redis.asyncio.connection import Connection, SSLConnection

from huleedu_service_libs.redis_sentinel import SentinelSet


class MasterConnection(Connection):
    """Looks the master up whenever it is opened, and is opened anew when another one is found.

    A pool calls `connect()` each time before it hands the connection out.
    """

    def __init__(self, *, sentinels: SentinelSet, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._sentinels = sentinels

    async def connect(self) -> None:
        if self.is_connected:
            master = self._sentinels.known_master() or await self._sentinels.likely_master()
            if master != (self.host, self.port):
                # It may be a replica by now, or hang, or live on where nobody hears it.
                await self.disconnect(nowait=True)
        if not self.is_connected:
            self.host, self.port = await self._sentinels.master()
        await super().connect()  # type: ignore[no-untyped-call]  # redis-py's


class MasterSSLConnection(MasterConnection, SSLConnection):
    """The same over TLS."""
