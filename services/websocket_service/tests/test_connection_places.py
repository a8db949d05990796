"""Places for connections, over a real Redis."""

import pytest

from huleedu_service_libs.admission import Admission
from huleedu_service_libs.connection_leases import ConnectionLeases
from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_server import RedisServer
from services.websocket_service.implementations.connection_places import ConnectionPlaces
from services.websocket_service.protocols import BackplaneUnavailableError


async def test_places_of_a_user() -> None:
    """A user has as many places as are configured, and who leaves gives one back."""
    async with (
        RedisServer() as server,
        RedisClient(client_id="test", redis_url=server.url) as client,
        ConnectionLeases(client) as leases,
    ):
        places = ConnectionPlaces(leases, 2)
        answers = [await places.acquire("t", name) for name in ("a", "b", "c")]
        assert answers == [Admission.GRANTED, Admission.GRANTED, Admission.FULL]
        places.release("t", "a")
        assert await places.acquire("t", "d") is Admission.GRANTED


async def test_redis_is_away() -> None:
    """While Redis is away nobody gets a place, and giving one back is no error."""
    async with (
        RedisServer() as server,
        RedisClient(client_id="test", redis_url=server.url) as client,
        ConnectionLeases(client) as leases,
    ):
        places = ConnectionPlaces(leases, 2)
        await places.acquire("t", "a")
        await server.kill()
        with pytest.raises(BackplaneUnavailableError):
            await places.acquire("t", "b")
        places.release("t", "b")
        places.release("t", "a")
