"""Connections that end because somebody elsewhere says so."""

from datetime import UTC, datetime, timedelta

import pytest

from huleedu_service_libs.connection_control import Disconnect
from huleedu_service_libs.revocation_list import Revocation
from services.websocket_service.live_control import LiveControl
from services.websocket_service.tests.fakes import MemoryClient, Service

LATER = datetime.now(UTC) + timedelta(hours=1)


async def opened(service: Service, user: str, token_id: str = "") -> MemoryClient:
    token = service.issuer.token(user, token_id=token_id)
    client = service.begin(MemoryClient(), token, v1=True)
    assert (await client.frame())["type"] == "welcome"
    return client


async def ended(client: MemoryClient) -> tuple[int, str]:
    """Close code, and the reason in the error frame before it."""
    frame = await client.frame()
    if frame["type"] == "going_away":
        frame = await client.frame()
    return (await client.closed()).code, frame["error"]["details"]["reason"]


async def test_revoked_token() -> None:
    """The connections of a revoked token end, and its user's others do not."""
    service = Service()
    revoked = [await opened(service, "a", "stolen") for _ in range(2)]
    other, stranger = await opened(service, "a"), await opened(service, "b")
    LiveControl(service.hub).on_revoked(Revocation(token_id="stolen", expires_at=LATER))
    for client in revoked:
        assert await ended(client) == (1008, "token_revoked")
    await service.assert_live("a", other)
    await service.assert_live("b", stranger)
    await service.leave(other, stranger)


async def test_revoked_user() -> None:
    """All of a user's connections end whose tokens were issued before the moment, nobody else's."""
    service = Service()
    before = await opened(service, "a")
    moment = datetime.now(UTC)
    after, stranger = await opened(service, "a"), await opened(service, "b")
    LiveControl(service.hub).on_revoked(
        Revocation(user_id="a", issued_before=moment, expires_at=LATER)
    )
    assert await ended(before) == (1008, "token_revoked")
    await service.assert_live("a", after)
    await service.assert_live("b", stranger)
    await service.leave(after, stranger)


@pytest.mark.parametrize(
    ("reconnect", "code"), [(False, 1008), (True, 1012)], ids=["for good", "to come back"]
)
async def test_disconnected_user(reconnect: bool, code: int) -> None:
    """An operator ends all connections of a user, and says whether their clients may come back."""
    service = Service()
    clients = [await opened(service, "a") for _ in range(2)]
    stranger = await opened(service, "b")
    LiveControl(service.hub).on_disconnect(Disconnect(user_id="a", reconnect=reconnect))
    for client in clients:
        assert await ended(client) == (code, "disconnected")
        assert client.close_frame is not None
        assert ("retry_after_ms" in client.close_frame.fields) is reconnect
    await service.assert_live("b", stranger)
    await service.leave(stranger)


@pytest.mark.parametrize("user", [None, "a"])
async def test_disconnected_connection(user: str | None) -> None:
    """One connection can be ended by its id."""
    service = Service()
    client, other = await opened(service, "a"), await opened(service, "a")
    (connection, _) = service.hub.connections()
    LiveControl(service.hub).on_disconnect(Disconnect(user_id=user, connection_id=connection.id))
    assert await ended(client) == (1008, "disconnected")
    await service.assert_live("a", other)
    await service.leave(other)


async def test_connections_elsewhere() -> None:
    """What is said of connections that are not here, or of another user's, changes nothing."""
    service = Service()
    client = await opened(service, "a")
    (connection,) = service.hub.connections()
    control = LiveControl(service.hub)
    control.on_disconnect(Disconnect(user_id="b"))
    control.on_disconnect(Disconnect(connection_id="unknown"))
    control.on_disconnect(Disconnect(user_id="b", connection_id=connection.id))
    await service.assert_live("a", client)
    await service.leave(client)
