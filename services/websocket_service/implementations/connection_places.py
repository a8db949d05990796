from redis.exceptions import RedisError

from huleedu_service_libs.admission import Admission
from huleedu_service_libs.connection_leases import ConnectionLeases
from services.websocket_service.protocols import BackplaneUnavailableError


class ConnectionPlaces:
    """At most `limit` connections of each user, counted by leases in Redis."""

    def __init__(self, leases: ConnectionLeases, limit: int) -> None:
        self._leases = leases
        self.limit = limit

    async def acquire(self, user_id: str, connection_id: str) -> Admission:
        try:
            return await self._leases.acquire(user_id, connection_id, limit=self.limit)
        except RedisError as error:
            raise BackplaneUnavailableError(str(error)) from error

    def release(self, user_id: str, connection_id: str) -> None:
        self._leases.release(user_id, connection_id)
