"""What is done for each connection from time to time."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from services.websocket_service.close_reasons import (
    SILENT_CLIENT,
    SLOW_CONSUMER,
    TOKEN_EXPIRED,
    CloseReason,
)
from services.websocket_service.connection import Connection, UserId
from services.websocket_service.frames import Dialect
from services.websocket_service.hub import ConnectionHub, HubLimits
from services.websocket_service.keeper import MAX_TICK_S, ConnectionKeeper, KeeperIntervals
from services.websocket_service.tests.fakes import (
    GIVE_UP_AFTER_S,
    FakePeer,
    MemoryClient,
    Service,
)

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
OPENED_AT = 1000.0
INTERVALS = KeeperIntervals(ping_interval_s=30, idle_timeout_s=300, write_timeout_s=20)
LIMITS = HubLimits(
    max_connections=4, max_connections_per_user=2, outbox_max_bytes=1000, outbox_max_frames=3
)


@dataclass
class Watch:
    """A connection that was opened at noon, and a keeper that comes when the test says so."""

    keeper: ConnectionKeeper
    connection: Connection
    peer: FakePeer

    def after(self, seconds: float) -> None:
        """Let the keeper attend to the connection so long after it was opened."""
        self.keeper.attend(self.connection, OPENED_AT + seconds, NOON + timedelta(seconds=seconds))

    def reason(self) -> CloseReason | None:
        closing = self.connection.closing
        return closing.result() if closing.done() else None

    async def written(self) -> list[str]:
        """All that the keeper has put into the outbox."""
        self.connection.outbox.finish()
        texts = []
        while (frame := await self.connection.outbox.take()) is not None:
            texts.append(frame.text)
        return texts


@contextmanager
def watch(dialect: Dialect = Dialect.PLAIN) -> Iterator[Watch]:
    hub = ConnectionHub(LIMITS, service="websocket_service")
    with hub.admit(
        user_id=UserId("a"),
        dialect=dialect,
        expires_at=NOON + timedelta(seconds=600),
        correlation_id=uuid4(),
    ) as connection:
        peer = FakePeer()
        connection.peer = peer
        peer.last_heard = OPENED_AT
        connection.last_written_at = connection.last_pinged_at = OPENED_AT
        yield Watch(ConnectionKeeper(hub, INTERVALS, lambda: NOON), connection, peer)


@pytest.mark.parametrize(("seconds", "reason"), [(599, None), (600, TOKEN_EXPIRED)])
async def test_expiry(seconds: float, reason: CloseReason | None) -> None:
    """A connection ends when its token does."""
    with watch() as watched:
        watched.peer.last_heard = OPENED_AT + seconds
        watched.after(seconds)
        assert watched.reason() == reason


@pytest.mark.parametrize(("silent_s", "reason"), [(300, None), (300.5, SILENT_CLIENT)])
async def test_idle(silent_s: float, reason: CloseReason | None) -> None:
    """A client of which nothing at all is heard for too long is given up."""
    with watch() as watched:
        watched.after(silent_s)
        assert watched.reason() == reason


async def test_pong_is_a_sign_of_life() -> None:
    """A client that answers pings may stay for as long as its token lasts."""
    with watch() as watched:
        for seconds in range(0, 600, 30):
            watched.peer.last_heard = OPENED_AT + seconds
            watched.after(seconds + 29)
        assert watched.reason() is None


@pytest.mark.parametrize(("stuck_s", "reason"), [(20, None), (20.5, SLOW_CONSUMER)])
async def test_stuck_write(stuck_s: float, reason: CloseReason | None) -> None:
    """A client that takes nothing for too long is given up, even if it still answers pings."""
    with watch() as watched:
        watched.connection.writing_since = watched.peer.last_heard = OPENED_AT + 10
        watched.after(10 + stuck_s)
        assert watched.reason() == reason


async def test_ping_at_each_interval() -> None:
    """A client is pinged once per interval, however often the keeper comes."""
    with watch() as watched:
        pings = []
        for seconds in range(1, 92):
            watched.after(seconds)
            pings.append(watched.peer.pings)
        assert next(n for n, count in enumerate(pings, start=1) if count) == 30
        assert watched.peer.pings == 3


async def test_heartbeat_where_nothing_else_was_sent() -> None:
    """A quiet v1 connection gets a heartbeat that says when it was sent."""
    with watch(Dialect.V1) as watched:
        watched.after(29)
        watched.after(30)
        (text,) = await watched.written()
        assert json.loads(text) == {"type": "heartbeat", "at": "2026-01-01T12:00:30+00:00"}


async def test_no_heartbeat_on_a_busy_line() -> None:
    """Notifications prove that the line is alive: no heartbeat comes between them."""
    with watch(Dialect.V1) as watched:
        for seconds in range(0, 300, 10):
            watched.connection.last_written_at = OPENED_AT + seconds
            watched.after(seconds + 9)
        assert await watched.written() == []


async def test_no_heartbeat_behind_a_stuck_write() -> None:
    """Heartbeats do not pile up behind a client that takes nothing."""
    with watch(Dialect.V1) as watched:
        watched.connection.writing_since = OPENED_AT
        watched.after(40)
        assert await watched.written() == []


async def test_plain_connection_gets_no_heartbeat() -> None:
    """A plain client sees notifications and nothing else."""
    with watch() as watched:
        watched.after(200)
        assert await watched.written() == []


async def test_full_outbox_gets_no_heartbeat() -> None:
    """A full outbox is the writer's affair, not a reason for the keeper to end the connection."""
    with watch(Dialect.V1) as watched:
        for seconds in range(30, 40):
            watched.after(seconds)
        assert len(await watched.written()) == LIMITS.outbox_max_frames
        assert watched.reason() is None


async def test_without_a_peer_the_rest_is_done() -> None:
    """Under a server that shows no peers, tokens still expire and heartbeats are sent."""
    with watch(Dialect.V1) as watched:
        watched.connection.peer = None
        watched.after(599)
        assert watched.reason() is None
        watched.after(600)
        assert watched.reason() == TOKEN_EXPIRED
        assert watched.peer.pings == 0
        assert await watched.written()


async def test_first_reason_of_several() -> None:
    """A connection that ends for several reasons at once ends for one of them."""
    with watch() as watched:
        watched.connection.writing_since = OPENED_AT
        watched.after(10_000)
        assert watched.reason() == TOKEN_EXPIRED


async def test_nothing_is_due_before_the_upgrade_is_answered() -> None:
    """A slow handshake is not disturbed: the first frame is `welcome`, and no ping precedes it."""
    service = Service()
    keeper = ConnectionKeeper(service.hub, INTERVALS, lambda: NOON)
    service.backplane.acknowledges.clear()
    client = service.begin(MemoryClient(), service.issuer.token("a"), v1=True)
    await service.backplane.asked.wait()

    (connection,) = service.hub.connections()
    late = asyncio.get_running_loop().time() + 60
    keeper.attend(connection, late, NOON)
    assert client.peer.pings == 0

    service.backplane.acknowledges.set()
    assert (await client.frame())["type"] == "welcome"
    keeper.attend(connection, late + 60, NOON)
    assert client.peer.pings == 1
    assert (await client.frame())["type"] == "heartbeat"
    client.leave()
    await client.ended()


async def test_running_keeper_looks_after_all_connections() -> None:
    """While the service runs, somebody notices that a token has expired; afterwards nobody."""
    service = Service()
    clients = [await service.connect(user) for user in "ab"]
    intervals = replace(INTERVALS, ping_interval_s=0.001)
    keeper = ConnectionKeeper(
        service.hub, intervals, lambda: datetime.now(UTC) + timedelta(hours=2)
    )
    async with keeper.running(), asyncio.timeout(GIVE_UP_AFTER_S):
        for client in clients:
            assert (await client.closed()).fields["message"] == "Token has expired"
    service.assert_nothing_left()


class BrokenPeer(FakePeer):
    """A peer whose connection the server has lost track of."""

    def ping(self) -> None:
        raise OSError("no such connection")


class PingedPeer(FakePeer):
    """A peer that tells when it has been pinged more than once."""

    def __init__(self) -> None:
        super().__init__()
        self.pinged_again = asyncio.Event()

    def ping(self) -> None:
        super().ping()
        if self.pings > 1:
            self.pinged_again.set()


async def test_one_broken_connection_is_not_the_end_of_the_keeper() -> None:
    """What goes wrong with one connection takes pings and expiry from no other."""
    service = Service()
    clients = [await service.connect(user) for user in "ab"]
    first, second = service.hub.connections()
    first.peer = BrokenPeer()
    second.peer = healthy = PingedPeer()
    intervals = replace(INTERVALS, ping_interval_s=0.001)
    keeper = ConnectionKeeper(service.hub, intervals, lambda: datetime.now(UTC))
    async with keeper.running(), asyncio.timeout(GIVE_UP_AFTER_S):
        await healthy.pinged_again.wait()
    for client in clients:
        client.leave()
        await client.ended()


@pytest.mark.parametrize(
    ("intervals", "tick_s"),
    [
        (INTERVALS, MAX_TICK_S),
        (replace(INTERVALS, ping_interval_s=2), 0.5),
        (replace(INTERVALS, idle_timeout_s=2), 0.5),
        (replace(INTERVALS, write_timeout_s=0.4), 0.1),
    ],
)
def test_tick(intervals: KeeperIntervals, tick_s: float) -> None:
    """The shortest interval is watched finely enough, and nothing more often than needed."""
    assert intervals.tick_s == tick_s
