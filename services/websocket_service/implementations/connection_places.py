import asyncio
from typing import Final

from huleedu_service_libs.admission import Admission
from huleedu_service_libs.connection_control import ConnectionControl
from huleedu_service_libs.connection_leases import ConnectionLeases
from services.websocket_service.implementations.redis_failures import redis_errors
from services.websocket_service.protocols import BackplaneUnavailableError

# A process that takes longer to answer is taken for dead, for now.
CONFIRMATION_S: Final = 0.3


class ConnectionPlaces:
    """At most `limit` connections of each user, counted by leases in Redis.

    Nobody is told for good that there is no place before the processes that hold the places have
    proved that they are alive: those of one that was killed lapse by themselves, and one that was
    given back a moment ago is free by then.
    """

    def __init__(self, leases: ConnectionLeases, control: ConnectionControl, limit: int) -> None:
        self._leases = leases
        self._control = control
        self.limit = limit
        # For all who ask meanwhile: since when leases are renewed, by Redis' clock.
        self._confirmations: dict[str, asyncio.Future[float]] = {}

    async def acquire(self, user_id: str, connection_id: str) -> Admission:
        with redis_errors():
            admission = await self._leases.acquire(user_id, connection_id, limit=self.limit)
            if admission is Admission.FULL:
                renewed_since = await self._confirmed(user_id)
                admission = await self._leases.acquire(
                    user_id, connection_id, limit=self.limit, renewed_since=renewed_since
                )
        return admission

    async def _confirmed(self, user_id: str) -> float:
        """Let every process renew what it holds for the user; returns since when."""
        asked = self._confirmations.get(user_id)
        if asked is not None:
            return await asyncio.shield(asked)
        asked = asyncio.get_running_loop().create_future()
        # Nobody else may be there to hear of a failure.
        asked.add_done_callback(asyncio.Future.exception)
        self._confirmations[user_id] = asked
        try:
            renewed_since = await self._leases.clock(user_id)
            await self._control.confirm_leases(user_id)
            await asyncio.sleep(CONFIRMATION_S)
            asked.set_result(renewed_since)
            return renewed_since
        finally:
            del self._confirmations[user_id]
            if not asked.done():
                asked.set_exception(BackplaneUnavailableError("leases could not be confirmed"))

    def release(self, user_id: str, connection_id: str) -> None:
        self._leases.release(user_id, connection_id)
