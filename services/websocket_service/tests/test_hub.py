"""Who is admitted, who is there, and how they all leave."""

import asyncio
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from common_core.error_enums import ErrorCode
from huleedu_service_libs.auth import JWTClaims
from huleedu_service_libs.error_handling import HuleEduError
from services.websocket_service.close_reasons import DRAINING, SLOW_CONSUMER, TOKEN_EXPIRED
from services.websocket_service.connection import Connection, UserId
from services.websocket_service.frames import Dialect
from services.websocket_service.hub import ConnectionHub, HubLimits
from services.websocket_service.outbound import FRAME_OVERHEAD_BYTES, OutboundFrame
from services.websocket_service.tests.fakes import HUB_LIMITS, MemoryClient, Service, turns
from services.websocket_service.tests.fakes import LIMITS as SESSION_LIMITS

LIMITS = HubLimits(
    max_connections=4,
    outbox_max_bytes=10 + 3 * FRAME_OVERHEAD_BYTES,
    outbox_max_frames=3,
    outboxes_max_bytes=20 + 5 * FRAME_OVERHEAD_BYTES,
)
EXPIRES_AT = datetime.now(UTC) + timedelta(hours=1)


@pytest.fixture
async def hub() -> ConnectionHub:
    return ConnectionHub(LIMITS, service="websocket_service")


def admit(hub: ConnectionHub, stack: ExitStack, user: str = "a") -> Connection:
    return stack.enter_context(
        hub.admit(
            claims=JWTClaims(subject=user, expires_at=EXPIRES_AT, raw={}),
            dialect=Dialect.PLAIN,
            correlation_id=uuid4(),
            peer=MemoryClient().socket,
        )
    )


def frame(text_bytes: int) -> OutboundFrame:
    return OutboundFrame(b"x" * text_bytes, 0.0)


async def test_user_is_found_by_name(hub: ConnectionHub) -> None:
    """A user's connections are found together, by user and one by one, for as long as they last."""
    with ExitStack() as stack:
        first, second = admit(hub, stack), admit(hub, stack)
        other = admit(hub, stack, "b")
        assert hub.connections_of(UserId("a")) == (first, second)
        assert hub.connection(other.id) is other
        assert hub.statistics().connections == 3
        assert hub.statistics().users == 2
    assert hub.connections_of(UserId("a")) == ()
    assert hub.connection(other.id) is None
    assert hub.statistics().users == 0


async def test_process_has_a_limit(hub: ConnectionHub) -> None:
    """A full process admits nobody, and says so before it looks at any token."""
    with ExitStack() as stack:
        for user in "abcd":
            assert not hub.full
            admit(hub, stack, user)
        assert hub.full
        with pytest.raises(HuleEduError) as refused:
            hub.check_node(uuid4())
        assert refused.value.error_detail.error_code is ErrorCode.CONNECTION_ERROR
        with pytest.raises(HuleEduError):
            admit(hub, stack, "e")
    assert not hub.full


async def test_error_carries_the_correlation_id(hub: ConnectionHub) -> None:
    """A refusal can be found in the logs by the id that the client was told."""
    await hub.drain(timeout_s=1)
    correlation_id = uuid4()
    with pytest.raises(HuleEduError) as refused:
        hub.check_node(correlation_id)
    assert refused.value.error_detail.error_code is ErrorCode.SERVICE_UNAVAILABLE
    assert refused.value.error_detail.correlation_id == correlation_id


async def test_place_is_free_after_a_failure(hub: ConnectionHub) -> None:
    """A connection that fails leaves no entry behind."""
    stack = ExitStack()
    admit(hub, stack)
    failure = RuntimeError("boom")
    assert not stack.__exit__(type(failure), failure, None)
    assert hub.connections() == ()
    assert hub.statistics().users == 0


async def test_connection_has_the_bounds_of_the_process(hub: ConnectionHub) -> None:
    """What waits for one connection is bounded as the settings say."""
    with ExitStack() as stack:
        outbox = admit(hub, stack).outbox
        assert not outbox.offer(frame(11 + 2 * FRAME_OVERHEAD_BYTES))
        assert [outbox.offer(frame(1)) for _ in range(4)] == [True, True, True, False]


async def test_first_reason_stands(hub: ConnectionHub) -> None:
    """A connection ends for exactly one reason: the first."""
    with ExitStack() as stack:
        connection = admit(hub, stack)
        connection.close(TOKEN_EXPIRED)
        connection.close(DRAINING)
        assert connection.closing.result() is TOKEN_EXPIRED


async def test_ids_differ(hub: ConnectionHub) -> None:
    """Two connections of one user can be told apart."""
    with ExitStack() as stack:
        assert admit(hub, stack).id != admit(hub, stack).id


async def test_nobody_there(hub: ConnectionHub) -> None:
    """A process without connections drains at once, as often as it is asked."""
    await hub.drain(timeout_s=1)
    await hub.drain(timeout_s=1)
    assert hub.draining


async def test_snapshot_does_not_change(hub: ConnectionHub) -> None:
    """A snapshot shows one moment, whatever happens afterwards."""
    before = hub.statistics()
    hub.counts.opened[Dialect.V1] += 1
    with hub.session():
        assert hub.statistics().handshakes == 1
        assert before.handshakes == 0
    assert before.opened == {}


async def test_drain_says_goodbye_to_everybody() -> None:
    """When the server drains, each client is told to come back later and all is released."""
    service = Service()
    clients = [await service.connect(f"user-{n}", v1=bool(n % 2)) for n in range(6)]
    await service.hub.drain(timeout_s=20)

    service.assert_nothing_left()
    for client in clients:
        assert client.close_frame is not None
        assert client.close_frame.code == 1012
        assert client.close_frame.fields["retry_after_ms"] > 0
        assert not client.socket.aborted
    assert service.hub.statistics().closed == {1012: 6}


async def test_drain_reaches_a_handshake() -> None:
    """A client whose upgrade is under way when the drain begins is told to come back later."""
    service = Service()
    service.backplane.acknowledges.clear()
    client = service.begin(MemoryClient(), service.issuer.token("a"))
    await service.backplane.asked.wait()
    draining = asyncio.create_task(service.hub.drain(timeout_s=20))
    await asyncio.sleep(0)
    service.backplane.acknowledges.set()
    assert (await client.closed()).code == 1012
    await draining
    service.assert_nothing_left()


async def test_nobody_comes_in_during_a_drain() -> None:
    """Who connects to a server that drains is told to come back later."""
    service = Service()
    await service.hub.drain(timeout_s=20)
    client = service.begin(MemoryClient(), service.issuer.token("a"))
    assert (await client.closed()).fields["error_code"] == "SERVICE_UNAVAILABLE"
    service.assert_nothing_left()


async def test_drain_cuts_off_those_who_do_not_go() -> None:
    """A client that takes nothing any more does not hold up the shutdown."""
    service = Service()
    stuck = await service.connect("a")
    stuck.stop_reading()
    service.backplane.publish("a", b"never read")
    await service.hub.drain(timeout_s=0.01)
    assert stuck.socket.aborted
    await stuck.ended()
    service.assert_nothing_left()


async def test_drain_cuts_off_those_who_do_not_answer() -> None:
    """A client that does not answer the close frame is dropped, and the drain returns."""
    service = Service(limits=replace(SESSION_LIMITS, close_timeout_s=0.01))
    mute = await service.connect("a", client=MemoryClient(answers_close=False))
    await service.hub.drain(timeout_s=20)
    assert mute.close_frame is not None
    assert mute.socket.aborted
    await mute.ended()
    service.assert_nothing_left()


async def test_fullest_goes_when_all_together_have_too_much(hub: ConnectionHub) -> None:
    """When too much waits in the process, whoever has most is closed, and its memory is free."""
    with ExitStack() as stack:
        connections = [admit(hub, stack, user) for user in "abc"]
        for connection, count in zip(connections, (1, 3, 1), strict=True):
            for _ in range(count):
                assert connection.outbox.offer(frame(3))
        assert hub.statistics().waiting_bytes == 15 + 5 * FRAME_OVERHEAD_BYTES
        assert not any(connection.closing.done() for connection in connections)
        assert connections[0].outbox.offer(frame(3))
        assert [connection.closing.done() for connection in connections] == [False, True, False]
        assert connections[1].closing.result() is SLOW_CONSUMER
        assert [len(connection.outbox) for connection in connections] == [2, 0, 1]
        assert hub.statistics().waiting_bytes == 9 + 3 * FRAME_OVERHEAD_BYTES
    assert hub.statistics().waiting_bytes == 0


async def test_one_that_leaves_gives_back_its_share(hub: ConnectionHub) -> None:
    """What still waited for a connection counts no longer once it has gone, however it went."""
    with ExitStack() as stack, ExitStack() as others:
        for user in "ab":
            assert admit(hub, others if user == "b" else stack, user).outbox.offer(frame(3))
        failure = RuntimeError("boom")
        others.__exit__(type(failure), failure, None)
        assert hub.statistics().waiting_bytes == 3 + FRAME_OVERHEAD_BYTES
    assert hub.statistics().waiting_bytes == 0


async def test_slow_ones_share_the_memory_of_the_process() -> None:
    """When clients that read too slowly hold too much together, others go on undisturbed."""
    service = Service(hub_limits=replace(HUB_LIMITS, outboxes_max_bytes=10_000))
    slow, slowest, reader = [await service.connect(user) for user in "abc"]
    slow.stop_reading()
    slowest.stop_reading()
    for client in (slow, slowest):
        service.backplane.publish("a" if client is slow else "b", b"on the network")
    await turns()
    for n in range(20):
        service.backplane.publish("a", b"%d" % n)
        service.backplane.publish("b", b"%0100d" % n)
        service.backplane.publish("c", b"%d" % n)
        assert await reader.text() == str(n)
    await turns()
    assert service.hub.statistics().closed == {4008: 1}
    waiting = service.hub.statistics().waiting_bytes
    assert waiting == 20 * FRAME_OVERHEAD_BYTES + 10 + 20
    slow.read()
    assert await slow.text() == "on the network"
    assert [await slow.text() for _ in range(20)] == [str(n) for n in range(20)]
    assert service.hub.statistics().waiting_bytes == 0
    slowest.read()
    assert await slowest.text() == "on the network"
    close = await slowest.closed()
    assert (close.code, close.fields["error_code"]) == (4008, "TIMEOUT")
    await service.leave(slow, reader)
