"""Tickets: good once, for a short time, and for nobody who only sees Redis."""

import asyncio
import base64
import json
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import exceptions
from redis.asyncio import Redis

from common_core.timestamps import utc_now
from huleedu_service_libs.auth import JWTClaims
from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_server import RedisServer
from huleedu_service_libs.testing.polling import until
from huleedu_service_libs.testing.redis_cluster import RedisCluster
from huleedu_service_libs.tickets import TicketStore
from libs.huleedu_service_libs.tests.redis.conftest import StartServer

HOUR = timedelta(hours=1)


def claims(
    subject: str = "teacher-1",
    *,
    expires_at: datetime | None = None,
    issued_at: datetime | None = None,
    token_id: str | None = None,
) -> JWTClaims:
    return JWTClaims(
        subject=subject,
        expires_at=expires_at or utc_now() + HOUR,
        issued_at=issued_at,
        token_id=token_id,
        raw=MappingProxyType({"sub": subject, "email": "private@example.org"}),
    )


@pytest.fixture
def store(client: RedisClient) -> TicketStore:
    return TicketStore(client, lifetime_s=30)


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
MOMENT = st.datetimes(datetime(2027, 1, 1), datetime(2150, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - hypothesis adds the zone
PAST = st.datetimes(datetime(1970, 1, 1), datetime(2150, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    issued=st.builds(
        claims,
        TEXT.filter(bool),
        expires_at=MOMENT,
        issued_at=PAST | st.none(),
        token_id=TEXT | st.none(),
    )
)
async def test_ticket_stands_for_its_token(store: TicketStore, issued: JWTClaims) -> None:
    """Whose it is, its age and its expiry are those of the token, so that it can be revoked."""
    redeemed = await store.redeem((await store.issue(issued)).ticket)
    assert redeemed is not None
    assert (redeemed.subject, redeemed.token_id) == (issued.subject, issued.token_id)
    assert (redeemed.expires_at, redeemed.issued_at) == (issued.expires_at, issued.issued_at)
    assert "email" not in redeemed.raw


async def test_ticket_is_good_once(store: TicketStore) -> None:
    """A used ticket is as unknown as one that never was."""
    (ticket, _), (other, _) = await store.issue(claims()), await store.issue(claims("teacher-2"))
    assert ticket != other
    first = await store.redeem(ticket)
    assert first is not None
    assert first.subject == "teacher-1"
    assert await store.redeem(ticket) is None
    second = await store.redeem(other)
    assert second is not None
    assert second.subject == "teacher-2"


async def test_one_of_many_wins(server: RedisServer) -> None:
    """Of a hundred who redeem one ticket at the same time, over two clients, one is admitted."""
    async with (
        RedisClient(client_id="one", redis_url=server.url) as one,
        RedisClient(client_id="other", redis_url=server.url) as other,
    ):
        stores = [TicketStore(client, lifetime_s=30) for client in (one, other)]
        for _ in range(10):
            ticket, _ = await stores[0].issue(claims())
            redeemed = await asyncio.gather(
                *(stores[n % 2].redeem(ticket) for n in range(100)),
            )
            assert len([won for won in redeemed if won is not None]) == 1


WELL_FORMED = base64.urlsafe_b64encode(bytes(32)).decode().rstrip("=")
MALFORMED = [
    "",
    "a",
    WELL_FORMED[:-1],
    WELL_FORMED + "A",
    WELL_FORMED + "\n",
    WELL_FORMED[:-1] + "=",
]
MALFORMED += [WELL_FORMED[:-1] + "+", "é" * 43, "\ud800" * 43, "x" * 1_000_000, " " * 43]


async def test_malformed_tickets() -> None:
    """What can't be a ticket is refused without asking Redis, even while that is away."""
    async with RedisClient(client_id="test", redis_url="redis://127.0.0.1:1") as client:
        store = TicketStore(client, lifetime_s=30)
        for ticket in MALFORMED:
            assert await store.redeem(ticket) is None
        with pytest.raises(exceptions.ConnectionError):
            await store.redeem(WELL_FORMED)
        with pytest.raises(exceptions.ConnectionError):
            await store.issue(claims())


async def test_ticket_is_not_in_redis(store: TicketStore, client: RedisClient) -> None:
    """Who reads everything in Redis finds nothing there that is a ticket."""
    ticket, _ = await store.issue(claims(token_id="t-1"))
    (key,) = await client.scan_pattern("*")
    kept = await client.get(key)
    assert kept is not None
    assert ticket not in key + kept
    assert json.loads(kept).keys() == {"sub", "exp", "jti"}
    assert await store.redeem(key) is None
    assert await store.redeem(key[-43:]) is None
    assert await store.redeem(ticket) is not None
    assert await client.scan_pattern("*") == []


async def test_ticket_lapses(client: RedisClient, admin: Redis) -> None:
    """A ticket that nobody uses is gone after its time."""
    store = TicketStore(client, lifetime_s=0.05)
    ticket, _ = await store.issue(claims())

    async def gone() -> bool:
        return not await admin.keys()

    await until(gone)
    assert await store.redeem(ticket) is None


@pytest.mark.parametrize(
    ("lifetime_s", "token_lives", "longest_s"),
    [(30, HOUR, 30), (30, timedelta(seconds=10), 10), (0.25, HOUR, 0.25)],
)
async def test_lifetime(
    client: RedisClient, admin: Redis, lifetime_s: float, token_lives: timedelta, longest_s: float
) -> None:
    """A ticket lives for as long as is set, and never longer than its token."""
    store = TicketStore(client, lifetime_s=lifetime_s)
    issued = await store.issue(claims(expires_at=utc_now() + token_lives))
    assert longest_s * 1000 - 1000 < issued.expires_in_ms <= longest_s * 1000
    for key in await admin.keys():
        assert await admin.pttl(key) <= issued.expires_in_ms


@pytest.mark.parametrize("age", [timedelta(0), timedelta(seconds=1), timedelta(days=365 * 50)])
async def test_ticket_of_an_expired_token(store: TicketStore, age: timedelta) -> None:
    """A token that has expired admits nobody, nor does its ticket."""
    ticket, _ = await store.issue(claims(expires_at=utc_now() - age))
    assert await store.redeem(ticket) is None


FORGED = [
    b"",
    b"x",
    b"\xff",
    b"null",
    b"[]",
    b"{}",
    b'{"sub":"a"}',
    b'{"sub":7,"exp":9e9}',
    b'{"sub":"a","exp":9e99}',
    b'{"sub":"a","exp":1e400}',
    b'{"sub":"a","exp":9000000000}',
    b'{"sub":"a","exp":true}',
    b'{"sub":"a","exp":9e9,"iat":"1"}',
    b'{"sub":"a","exp":9e9,"iat":-9e99}',
    b'{"sub":"a","exp":9e9,"jti":7}',
]


@pytest.mark.parametrize("kept", FORGED)
async def test_unreadable_claims(
    store: TicketStore, admin: Redis, caplog: pytest.LogCaptureFixture, kept: bytes
) -> None:
    """Where something else stands in a ticket's place it admits nobody and breaks nothing."""
    ticket, _ = await store.issue(claims())
    (key,) = await admin.keys()
    await admin.set(key, kept)
    assert await store.redeem(ticket) is None
    assert "can't be read" in caplog.text
    assert ticket not in caplog.text
    assert await admin.keys() == []


async def test_installations_are_apart(client: RedisClient) -> None:
    """A ticket of one installation is unknown to another one in the same Redis."""
    one = TicketStore(client, channel_prefix="one", lifetime_s=30)
    other = TicketStore(client, channel_prefix="other", lifetime_s=30)
    ticket, _ = await one.issue(claims())
    assert await other.redeem(ticket) is None
    assert await one.redeem(ticket) is not None


async def test_on_a_cluster(redis_binary: Path) -> None:
    """On a Cluster tickets lie on all nodes, and every process can redeem them."""
    async with (
        RedisCluster(redis_binary) as cluster,
        RedisClient(client_id="issuing", redis_url=cluster.url) as issuing,
        RedisClient(client_id="redeeming", redis_url=cluster.url) as redeeming,
    ):
        issuer, redeemer = (TicketStore(client, lifetime_s=30) for client in (issuing, redeeming))
        tickets = await asyncio.gather(*(issuer.issue(claims(f"u-{n}")) for n in range(60)))
        for node in cluster.nodes:
            assert await cluster.admin(node).dbsize() > 0
        for number, (ticket, _) in enumerate(tickets):
            redeemed = await redeemer.redeem(ticket)
            assert redeemed is not None
            assert redeemed.subject == f"u-{number}"
            assert await redeemer.redeem(ticket) is None


async def test_hung_redis(start_server: StartServer) -> None:
    """While Redis hangs, issuing and redeeming fail in time."""
    async with (
        start_server() as server,
        RedisClient(client_id="test", redis_url=server.url, timeout_s=0.3) as client,
    ):
        store = TicketStore(client, lifetime_s=30)
        ticket, _ = await store.issue(claims())
        server.signal(signal.SIGSTOP)
        with pytest.raises(exceptions.TimeoutError):
            await store.redeem(ticket)
        with pytest.raises(exceptions.TimeoutError):
            await store.issue(claims())


async def test_restarted_redis(start_server: StartServer) -> None:
    """A Redis that comes back empty knows no ticket, and issues new ones."""
    async with (
        start_server() as server,
        RedisClient(client_id="test", redis_url=server.url) as client,
    ):
        store = TicketStore(client, lifetime_s=30)
        ticket, _ = await store.issue(claims())
        await server.kill()
        await server.launch()
        assert await store.redeem(ticket) is None
        assert await store.redeem((await store.issue(claims())).ticket) is not None
