from huleedu_service_libs.auth.jwt_validation import JWTClaims
from huleedu_service_libs.issued_ticket import IssuedTicket
from huleedu_service_libs.tickets import TicketStore
from services.websocket_service.implementations.redis_failures import redis_errors


class TicketOffice:
    """Tickets in Redis."""

    def __init__(self, store: TicketStore) -> None:
        self._store = store

    async def issue(self, claims: JWTClaims) -> IssuedTicket:
        with redis_errors():
            return await self._store.issue(claims)

    async def redeem(self, ticket: str) -> JWTClaims | None:
        with redis_errors():
            return await self._store.redeem(ticket)
