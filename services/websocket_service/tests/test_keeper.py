"""What is done for each connection from time to time."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from huleedu_service_libs.auth import JWTClaims
from services.websocket_service.close_reasons import SILENT_CLIENT, TOKEN_EXPIRED, CloseReason
from services.websocket_service.connection import Connection
from services.websocket_service.frames import Dialect
from services.websocket_service.hub import ConnectionHub
from services.websocket_service.keeper import ConnectionKeeper, KeeperIntervals
from services.websocket_service.outbound import OutboundFrame
from services.websocket_service.tests.fakes import (
    GIVE_UP_AFTER_S,
    HUB_LIMITS,
    INTERVALS,
    MemoryClient,
    MemorySocket,
    Service,
    turns,
)

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
OPENED_AT = 1000.0
EXPIRES_AT = NOON + timedelta(seconds=600)


class FakePeer:
    """The far end of a connection; the test says what comes from there."""

    def __init__(self) -> None:
        self.last_heard_at: float | None = OPENED_AT
        self.pings = 0

    def ping(self) -> None:
        self.pings += 1

    def abort(self) -> None:
        raise AssertionError


@dataclass
class Watch:
    """A connection that was opened at noon, and a keeper that comes when the test says so."""

    keeper: ConnectionKeeper
    connection: Connection
    peer: FakePeer

    def after(self, seconds: float) -> float:
        """Let the keeper attend to the connection so long after it was opened.

        Returns in how many seconds it wants to come again.
        """
        return self.keeper.attend(
            self.connection, OPENED_AT + seconds, NOON + timedelta(seconds=seconds)
        )

    def visits(self, *, until: float) -> list[float]:
        """Let the keeper come whenever it wants to; returns when it came."""
        at = [0.0]
        while (next_at := at[-1] + self.after(at[-1])) <= until:
            at.append(next_at)
        return at

    def reason(self) -> CloseReason | None:
        closing = self.connection.closing
        return closing.result() if closing.done() else None

    def written(self) -> list[str]:
        """All that the keeper has put into the outbox."""
        return [frame.text.decode() for frame in self.connection.outbox.take(10**9)]


@contextmanager
def watch(
    dialect: Dialect = Dialect.PLAIN, intervals: KeeperIntervals = INTERVALS
) -> Iterator[Watch]:
    peer = FakePeer()
    with ConnectionHub(HUB_LIMITS, service="websocket_service").admit(
        claims=JWTClaims(subject="a", expires_at=EXPIRES_AT, raw={}),
        dialect=dialect,
        correlation_id=uuid4(),
        peer=peer,
    ) as connection:
        connection.last_written_at = connection.last_pinged_at = OPENED_AT
        yield Watch(ConnectionKeeper(intervals, lambda: NOON), connection, peer)


@pytest.mark.parametrize(("seconds", "reason"), [(599, None), (600, TOKEN_EXPIRED)])
async def test_expiry(seconds: float, reason: CloseReason | None) -> None:
    """A connection ends when its token does."""
    with watch() as watched:
        watched.peer.last_heard_at = OPENED_AT + seconds
        watched.after(seconds)
        assert watched.reason() == reason


async def test_plain_client_ends_with_its_token_but_for_the_leeway() -> None:
    """Where clocks may differ, a connection lasts as long as its token would be accepted."""
    with watch(intervals=replace(INTERVALS, leeway_s=5, grace_period_s=30)) as watched:
        watched.peer.last_heard_at = OPENED_AT + 600
        watched.after(604)
        assert watched.reason() is None
        watched.after(605)
        assert watched.reason() == TOKEN_EXPIRED


async def test_v1_client_has_a_grace_period() -> None:
    """A v1 client that has not renewed its token in time has a little longer to do so."""
    with watch(Dialect.V1, replace(INTERVALS, leeway_s=5, grace_period_s=30)) as watched:
        watched.peer.last_heard_at = OPENED_AT + 600
        watched.after(634)
        assert watched.reason() is None
        watched.after(635)
        assert watched.reason() == TOKEN_EXPIRED


@pytest.mark.parametrize(("silent_s", "reason"), [(299.5, None), (300, SILENT_CLIENT)])
async def test_idle(silent_s: float, reason: CloseReason | None) -> None:
    """A client of which nothing at all is heard for too long is given up."""
    with watch() as watched:
        watched.after(silent_s)
        assert watched.reason() == reason


async def test_pong_is_a_sign_of_life() -> None:
    """A client that answers pings may stay for as long as its token lasts."""
    with watch() as watched:
        for seconds in range(0, 600, 30):
            watched.peer.last_heard_at = OPENED_AT + seconds
            watched.after(seconds + 29)
        assert watched.reason() is None


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
        (text,) = watched.written()
        assert json.loads(text) == {"type": "heartbeat", "at": "2026-01-01T12:00:30+00:00"}


async def test_no_heartbeat_on_a_busy_line() -> None:
    """Notifications prove that the line is alive: no heartbeat comes between them."""
    with watch(Dialect.V1) as watched:
        for seconds in range(0, 300, 10):
            watched.connection.last_written_at = OPENED_AT + seconds
            watched.after(seconds + 9)
        assert watched.written() == []


async def test_heartbeats_do_not_pile_up() -> None:
    """Behind a client that takes nothing one heartbeat waits, or none behind something else."""
    with watch(Dialect.V1) as watched:
        for seconds in range(0, 300, 10):
            watched.after(seconds)
        assert len(watched.written()) == 1
        watched.connection.outbox.offer(OutboundFrame(b"something else", 0.0))
        for seconds in range(300, 600, 10):
            watched.peer.last_heard_at = OPENED_AT + seconds
            watched.after(seconds)
        assert watched.written() == ["something else"]


async def test_plain_connection_gets_no_heartbeat() -> None:
    """A plain client sees notifications and nothing else."""
    with watch() as watched:
        watched.after(200)
        assert watched.written() == []


async def test_without_signs_of_life_the_rest_is_done() -> None:
    """Under a server that hides what it hears, tokens still expire and heartbeats are sent."""
    with watch(Dialect.V1) as watched:
        watched.peer.last_heard_at = None
        watched.after(599)
        assert watched.reason() is None
        watched.after(600)
        assert watched.reason() == TOKEN_EXPIRED
        assert watched.written()


async def test_first_reason_of_several() -> None:
    """A connection that ends for several reasons at once ends for one of them."""
    with watch() as watched:
        watched.after(10_000)
        assert watched.reason() == TOKEN_EXPIRED


@pytest.mark.parametrize(
    ("dialect", "visits"),
    [(Dialect.PLAIN, [0, 30, 60, 90, 120]), (Dialect.V1, [0, 10, 30, 40, 60, 70, 90, 100, 120])],
)
async def test_comes_when_something_is_due(dialect: Dialect, visits: list[float]) -> None:
    """Nobody looks at a connection on which nothing is due."""
    with watch(dialect) as watched:
        watched.connection.last_written_at = OPENED_AT - 20
        assert watched.visits(until=120) == visits
        assert watched.peer.pings == 4


async def test_comes_in_time_for_the_ends() -> None:
    """Silence and expiry are noticed when they come, and not at the next ping."""
    with watch() as watched:
        watched.peer.last_heard_at = OPENED_AT - 285
        assert watched.visits(until=15) == [0, 15]
        assert watched.reason() == SILENT_CLIENT
    with watch() as watched:
        watched.peer.last_heard_at = OPENED_AT + 500
        assert watched.after(590) == 10
        watched.after(600)
        assert watched.reason() == TOKEN_EXPIRED


async def test_a_clock_that_is_wrong_costs_little() -> None:
    """However late or early the keeper comes, it lets others have a turn before it comes again."""
    with watch() as watched:
        assert watched.after(10_000) > 0
        assert watched.after(-10_000) > 0


async def test_nothing_is_due_before_the_upgrade_is_answered() -> None:
    """A slow handshake is not disturbed: the first frame is `welcome`, and no ping precedes it."""
    service = Service()
    keeper = ConnectionKeeper(INTERVALS, lambda: NOON)
    service.backplane.acknowledges.clear()
    client = service.begin(MemoryClient(), service.issuer.token("a"), v1=True)
    await service.backplane.asked.wait()

    (connection,) = service.hub.connections()
    late = asyncio.get_running_loop().time() + 60
    keeper.attend(connection, late, NOON)
    assert client.socket.pings == 0

    service.backplane.acknowledges.set()
    assert (await client.frame())["type"] == "welcome"
    keeper.attend(connection, late + 60, NOON)
    assert client.socket.pings == 1
    assert (await client.frame())["type"] == "heartbeat"
    await service.leave(client)


OFTEN = replace(INTERVALS, ping_interval_s=0.001)


async def test_every_connection_is_looked_after() -> None:
    """While connections are open somebody notices that their tokens have expired."""
    service = Service(intervals=OFTEN, utc_now=lambda: datetime.now(UTC) + timedelta(hours=2))
    clients = [service.begin(MemoryClient(), service.issuer.token(user)) for user in "ab"]
    for client in clients:
        assert (await client.closed()).fields["message"] == "Token has expired"
    service.assert_nothing_left()


async def test_heartbeats_come_by_themselves() -> None:
    """A quiet v1 client hears one heartbeat after the other."""
    service = Service(intervals=OFTEN)
    client = await service.connect(v1=True)
    for _ in range(5):
        assert (await client.frame())["type"] == "heartbeat"
    await service.leave(client)


class BrokenSocket(MemorySocket):
    """A socket whose connection the server has lost track of."""

    def ping(self) -> None:
        raise OSError("no such connection")


class PingedClient(MemoryClient):
    """A client that tells of each ping."""

    def __init__(self) -> None:
        super().__init__()
        self.pinged = asyncio.Semaphore(0)
        self.socket = PingedSocket(self)

    async def pinged_often(self) -> None:
        async with asyncio.timeout(GIVE_UP_AFTER_S):
            for _ in range(10):
                await self.pinged.acquire()


class PingedSocket(MemorySocket):
    def __init__(self, client: PingedClient) -> None:
        super().__init__(client)
        self._pinged = client.pinged

    def ping(self) -> None:
        super().ping()
        self._pinged.release()


async def test_one_broken_connection_is_not_the_end_of_the_keeper() -> None:
    """What goes wrong with one connection takes pings and expiry from no other, nor from itself."""
    service = Service(intervals=OFTEN)
    broken, healthy = MemoryClient(), PingedClient()
    broken.socket = BrokenSocket(broken)
    for client in (broken, healthy):
        await service.connect("a", client=client)
    await healthy.pinged_often()
    (first, _) = service.hub.connections()
    first.claims = replace(first.claims, expires_at=NOON)
    assert (await broken.closed()).code == 1008
    await service.leave(healthy)


async def test_one_that_is_told_to_go_is_left_alone() -> None:
    """A connection that ends is looked at no more, however long its client takes over it."""
    service = Service(intervals=OFTEN)
    stuck, healthy = PingedClient(), PingedClient()
    for client in (stuck, healthy):
        await service.connect("a", client=client)
    stuck.stop_reading()
    for _ in range(2):
        service.backplane.publish("a", b"x")
        await turns()
    service.hub.connections()[0].close(TOKEN_EXPIRED)
    await healthy.pinged_often()
    pings = stuck.socket.pings
    await healthy.pinged_often()
    assert stuck.socket.pings == pings
    assert service.hub.statistics().connections == 2
    await service.leave(stuck, healthy)
