"""Tickets as the service sees them: a Redis that is away is told from a ticket that is bad."""

from datetime import timedelta
from types import MappingProxyType

import pytest

from common_core.timestamps import utc_now
from huleedu_service_libs.auth.jwt_validation import JWTClaims
from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_server import RedisServer
from huleedu_service_libs.tickets import TicketStore
from services.websocket_service.implementations.ticket_office import TicketOffice
from services.websocket_service.protocols import BackplaneUnavailableError

CLAIMS = JWTClaims(
    subject="u", expires_at=utc_now() + timedelta(hours=1), raw=MappingProxyType({"sub": "u"})
)


async def test_redis_goes_away() -> None:
    """A ticket is good once; without Redis nobody can say whether it is."""
    async with RedisServer() as server, RedisClient(client_id="t", redis_url=server.url) as client:
        office = TicketOffice(TicketStore(client, lifetime_s=30))
        (ticket, _), (other, _) = await office.issue(CLAIMS), await office.issue(CLAIMS)
        redeemed = await office.redeem(ticket)
        assert redeemed is not None
        assert redeemed.subject == "u"
        assert await office.redeem(ticket) is None
        await server.kill()
        with pytest.raises(BackplaneUnavailableError):
            await office.redeem(other)
        with pytest.raises(BackplaneUnavailableError):
            await office.issue(CLAIMS)
        assert await office.redeem("no ticket") is None
