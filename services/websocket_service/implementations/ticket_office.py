from redis.exceptions import RedisError

from huleedu_service_libs.auth.jwt_validation import JWTClaims
from huleedu_service_libs.tickets import TicketStore
from services.websocket_service.protocols import BackplaneUnavailableError


class TicketOffice:
    """Tickets in Redis."""

    def __init__(self, store: TicketStore) -> None:
        self._store = store

    async def issue(self, claims: JWTClaims) -> str:
        try:
            return await self._store.issue(claims)
        except RedisError as error:
            raise BackplaneUnavailableError(str(error)) from error

    async def redeem(self, ticket: str) -> JWTClaims | None:
        try:
            return await self._store.redeem(ticket)
        except RedisError as error:
            raise BackplaneUnavailableError(str(error)) from error
