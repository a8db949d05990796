"""A token's life on an open connection: its end is announced, and another may take its place."""

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from services.websocket_service.tests.fakes import INTERVALS, MemoryClient, Service, turns

SOON = replace(INTERVALS, expiry_notice_s=0.02)
MINUTE = timedelta(minutes=1)


class Clock:
    """The wall clock of the service, ahead of ours by as much as the test says."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


async def opened(service: Service, expires_in: timedelta, user: str = "a") -> MemoryClient:
    """A welcomed v1 client."""
    token = service.issuer.token(user, expires_in)
    client = service.begin(MemoryClient(), token, v1=True)
    assert (await client.frame())["type"] == "welcome"
    return client


def authenticate(client: MemoryClient, token: str) -> None:
    client.socket.come(json.dumps({"type": "authenticate", "token": token}))


async def refused(client: MemoryClient) -> tuple[int, str, str]:
    """Close code, error code and reason; the error frame comes first and says the same."""
    error = (await client.frame())["error"]
    close = await client.closed()
    assert close.fields["error_code"] == error["code"]
    return close.code, error["code"], error["details"].get("reason")


async def test_expiry_is_announced_once() -> None:
    """A v1 client is told some time before its token expires, with the time that is left."""
    service = Service(intervals=SOON)
    client = await opened(service, timedelta(seconds=0.2))
    frame = await client.frame()
    assert frame.keys() == {"type", "expires_in_ms"}
    assert frame["type"] == "token_expiring"
    assert 0 <= frame["expires_in_ms"] <= 20
    assert await refused(client) == (1008, "AUTHENTICATION_ERROR", "token_expired")
    service.assert_nothing_left()


async def test_short_lived_token_is_announced_after_half_of_its_life() -> None:
    """A token that lives for less than the notice is not announced with the welcome already."""
    service = Service()
    client = await opened(service, timedelta(seconds=0.2))
    frame = await client.frame()
    assert frame["type"] == "token_expiring"
    assert frame["expires_in_ms"] <= 100
    assert (await refused(client))[0] == 1008


async def test_plain_client_is_told_nothing() -> None:
    """A plain client's connection just ends, for it could do nothing about it."""
    service = Service(intervals=replace(SOON, grace_period_s=3600))
    client = service.begin(MemoryClient(), service.issuer.token("a", timedelta(seconds=0.1)))
    assert (await client.closed()).fields["message"] == "Token has expired"


async def test_new_token_takes_the_place_of_the_old() -> None:
    """A client that sends a new token in time keeps its connection beyond the old one's end."""
    clock = Clock()
    service = Service(utc_now=clock)
    client = await opened(service, MINUTE)
    token = service.issuer.token("a", 10 * MINUTE)
    authenticate(client, token)
    expires_at = service.issuer.claims(token).expires_at
    assert await client.frame() == {
        "type": "token_refreshed",
        "token_expires_at": expires_at.isoformat(),
    }
    (connection,) = service.hub.connections()
    clock.ahead = 2 * MINUTE
    service.sessions._keeper.attend(connection, 0, clock())
    await service.assert_live("a", client)
    assert service.hub.statistics().token_renewals == {"refreshed": 1}
    await service.leave(client)


async def test_new_token_is_announced_in_its_turn() -> None:
    """Each token of a connection is announced once."""
    service = Service(intervals=SOON)
    client = await opened(service, timedelta(seconds=0.1))
    assert (await client.frame())["type"] == "token_expiring"
    authenticate(client, service.issuer.token("a", timedelta(seconds=0.1)))
    assert (await client.frame())["type"] == "token_refreshed"
    assert (await client.frame())["type"] == "token_expiring"
    assert (await refused(client))[0] == 1008


async def test_token_that_ends_earlier_counts_too() -> None:
    """A client may also choose a token that ends before its old one."""
    service = Service(intervals=SOON)
    client = await opened(service, timedelta(hours=1))
    authenticate(client, service.issuer.token("a", timedelta(seconds=0.1)))
    assert (await client.frame())["type"] == "token_refreshed"
    assert (await client.frame())["type"] == "token_expiring"
    assert await refused(client) == (1008, "AUTHENTICATION_ERROR", "token_expired")


async def test_token_may_come_in_the_grace_period() -> None:
    """A client that is late with its new token is forgiven for a while."""
    clock = Clock()
    service = Service(utc_now=clock, intervals=replace(INTERVALS, grace_period_s=30))
    client = await opened(service, MINUTE)
    clock.ahead = MINUTE + timedelta(seconds=15)
    (connection,) = service.hub.connections()
    service.sessions._keeper.attend(connection, 0, clock())
    assert await client.frame() == {"type": "token_expiring", "expires_in_ms": 0}
    authenticate(client, service.issuer.token("a", 10 * MINUTE))
    assert (await client.frame())["type"] == "token_refreshed"
    await service.assert_live("a", client)
    await service.leave(client)


async def test_token_of_another_user_is_the_end() -> None:
    """Nobody takes over a connection with somebody else's token."""
    service = Service()
    client = await opened(service, MINUTE)
    authenticate(client, service.issuer.token("b"))
    assert await refused(client) == (1008, "AUTHORIZATION_ERROR", "other_user")
    assert service.hub.statistics().token_renewals == {"other_user": 1}
    service.assert_nothing_left()


async def test_bad_token_is_the_end() -> None:
    """A token that proves nothing ends the connection as it would have refused it."""
    service = Service()
    client = await opened(service, MINUTE)
    authenticate(client, "made up")
    assert await refused(client) == (1008, "AUTHENTICATION_ERROR", "invalid_token")
    service.assert_nothing_left()


async def test_revoked_token_is_the_end() -> None:
    """A revoked token renews nothing."""
    service = Service()
    client = await opened(service, MINUTE)
    service.revocations.token_ids.add("revoked")
    authenticate(client, service.issuer.token("a", token_id="revoked"))
    assert await refused(client) == (1008, "AUTHENTICATION_ERROR", "token_revoked")
    service.assert_nothing_left()


@pytest.mark.parametrize("trouble", ["key", "revocations"])
async def test_trouble_of_ours_is_not_held_against_the_client(trouble: str) -> None:
    """While we can't judge a new token, the client hears so and goes on with the old one."""
    service = Service()
    client = await opened(service, MINUTE)
    token = service.issuer.token("a", 10 * MINUTE)
    service.issuer.has_key = trouble != "key"
    service.revocations.is_current = trouble != "revocations"
    authenticate(client, token)
    frame = await client.frame()
    assert frame["type"] == "error"
    assert frame["error"]["code"] == "CONNECTION_ERROR"
    assert frame["error"]["message"] == "Try again later"
    service.issuer.has_key = service.revocations.is_current = True
    authenticate(client, token)
    assert (await client.frame())["type"] == "token_refreshed"
    assert service.hub.statistics().token_renewals == {"unverifiable": 1, "refreshed": 1}
    await service.leave(client)


async def test_one_at_a_time() -> None:
    """A client that sends tokens faster than they can be judged is asked to wait."""
    service = Service()
    client = await opened(service, MINUTE)
    service.issuer.answers.clear()
    for _ in range(3):
        authenticate(client, service.issuer.token("a"))
    for _ in range(2):
        assert (await client.frame())["error"]["code"] == "RATE_LIMIT"
    service.issuer.answers.set()
    assert (await client.frame())["type"] == "token_refreshed"
    await service.leave(client)


async def test_leaving_while_a_token_is_judged() -> None:
    """A client that leaves in the middle of it leaves nothing behind."""
    service = Service()
    client = await opened(service, MINUTE)
    service.issuer.answers.clear()
    authenticate(client, service.issuer.token("a"))
    await turns()
    await service.leave(client)


async def test_a_defect_ends_with_1011() -> None:
    """What goes wrong on our side while a token is judged is never kept from the client."""
    service = Service()
    client = await opened(service, MINUTE)
    service.issuer.failure = RuntimeError("broken")
    authenticate(client, service.issuer.token("a"))
    assert (await refused(client))[:2] == (1011, "UNKNOWN_ERROR")
    service.assert_nothing_left()


async def test_drain_is_announced() -> None:
    """Before a v1 client is told to go it hears when to come back: the same as in the close."""
    service = Service()
    client = await opened(service, MINUTE)
    draining = asyncio.create_task(service.hub.drain(timeout_s=20))
    frame = await client.frame()
    assert frame["type"] == "going_away"
    assert (await client.frame())["error"]["code"] == "SERVICE_UNAVAILABLE"
    close = await client.closed()
    assert close.code == 1012
    assert close.fields["retry_after_ms"] == frame["reconnect_after_ms"]
    await draining
