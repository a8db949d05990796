"""How frames leave: together where they are ready together, and never for long behind anybody."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.websocket_service.close_reasons import RATE_LIMITED, SLOW_CONSUMER
from services.websocket_service.exchange import MAX_WRITE_BYTES
from services.websocket_service.outbound import FRAME_OVERHEAD_BYTES
from services.websocket_service.tests.fakes import (
    GIVE_UP_AFTER_S,
    HUB_LIMITS,
    LIMITS,
    CloseFrame,
    MemoryClient,
    Service,
    objects,
    turns,
)

BOTH = pytest.mark.parametrize("v1", [False, True], ids=["plain", "v1"])
# With its overhead, and in either dialect.
HALF_A_WRITE = b'{"text":"%b"}' % (b"x" * (MAX_WRITE_BYTES // 2 - 2 * FRAME_OVERHEAD_BYTES))
ROOMY = replace(HUB_LIMITS, outbox_max_frames=10_000, outbox_max_bytes=10_000_000)


def publish(service: Service, *numbers: int) -> None:
    for n in numbers:
        service.backplane.publish("a", b'{"n":%d}' % n)


def sizes(client: MemoryClient) -> list[int]:
    """How many frames each write so far had."""
    return [len(frames) for frames in client.socket.writes]


async def behind(service: Service, *, v1: bool) -> MemoryClient:
    """A client that has stopped reading, with number 0 on the network and nothing behind it."""
    client = await service.connect("a", v1=v1)
    await fall_behind(service, client)
    return client


async def fall_behind(service: Service, client: MemoryClient) -> None:
    client.stop_reading()
    publish(service, 0)
    await turns()
    assert not client.socket.writable


class TestBatches:
    @BOTH
    async def test_what_is_ready_together_leaves_together(self, v1: bool) -> None:
        """Several notifications that come together leave in one write, each in its own frame."""
        service = Service()
        client = await service.connect("a", v1=v1)
        before = len(sizes(client))
        publish(service, *range(5))
        await turns()
        publish(service, 5)
        await turns()
        assert sizes(client)[before:] == [5, 1]
        texts = [json.loads(await client.text()) for _ in range(6)]
        assert [text["n"] for text in texts] == list(range(6))
        await service.leave(client)

    async def test_a_write_is_bounded(self) -> None:
        """No write holds more than its bound, unless a single frame is larger."""
        service = Service(hub_limits=ROOMY)
        client = await service.connect("a")
        lengths = [MAX_WRITE_BYTES // 3] * 5 + [2 * MAX_WRITE_BYTES] + [1] * 1000
        for length in lengths:
            service.backplane.publish("a", b"x" * length)
        assert [len(await client.text()) for _ in lengths] == lengths
        for frames in client.socket.writes:
            assert len(frames) == 1 or sum(frame.size for frame in frames) <= MAX_WRITE_BYTES
        assert max(sizes(client)) == MAX_WRITE_BYTES // (FRAME_OVERHEAD_BYTES + 1)
        await service.leave(client)

    async def test_burst_larger_than_the_outbox(self) -> None:
        """A client that reads gets a burst of more than may wait for it."""
        service = Service(hub_limits=replace(HUB_LIMITS, outbox_max_frames=3))
        client = await service.connect("a")
        for n in range(50):
            service.backplane.publish("a", b"%d" % n)
        assert [await client.text() for _ in range(50)] == [str(n) for n in range(50)]
        await service.leave(client)

    async def test_answers_leave_together(self) -> None:
        """The answers to several pings leave in one write."""
        service = Service()
        client = await service.connect("a", v1=True)
        before = len(sizes(client))
        for nonce in range(5):
            client.say(json.dumps({"type": "ping", "nonce": nonce}))
        assert [(await client.frame())["nonce"] for _ in range(5)] == list(range(5))
        assert sizes(client)[before:] == [5]
        await service.leave(client)

    async def test_encoded_once_for_all(self) -> None:
        """However many tabs a notification goes to, its bytes are made once for each dialect."""
        service = Service()
        tabs = [await service.connect("a", v1=v1) for v1 in (False, True, False)]
        more = [await service.connect("b", v1=True) for _ in range(3)]
        for tab in (*tabs, *more):
            tab.socket.writes.clear()
        service.backplane.notify("a")
        service.backplane.notify("b")
        await turns()
        wires = [tab.socket.writes[0][0].wire for tab in (*tabs, *more)]
        assert wires[0] is wires[2]
        assert wires[3] is wires[4] is wires[5]
        assert len({id(wire) for wire in wires}) == 3
        await service.leave(*tabs, *more)


class TestArrays:
    async def test_client_that_is_behind(self) -> None:
        """A v1 client that is behind gets what has piled up as one array, then objects again."""
        service = Service()
        client = await behind(service, v1=True)
        publish(service, *range(1, 6))
        await turns()
        client.read()
        await turns()
        publish(service, 6, 7)
        await turns()
        texts = [await client.text() for _ in range(4)]
        assert json.loads(texts[0]) == {"type": "notification", "n": 0}
        assert json.loads(texts[1]) == [{"type": "notification", "n": n} for n in range(1, 6)]
        assert [json.loads(text)["n"] for text in texts[2:]] == [6, 7]
        assert service.hub.statistics().deliveries == 8
        await service.leave(client)

    async def test_one_alone_stays_an_object(self) -> None:
        """Where only one frame has piled up it stays as it is."""
        service = Service()
        client = await behind(service, v1=True)
        publish(service, 1)
        await turns()
        client.read()
        assert [json.loads(await client.text())["n"] for _ in range(2)] == [0, 1]
        await service.leave(client)

    async def test_plain_client_gets_no_array(self) -> None:
        """A plain client gets each payload in a frame of its own, however far it is behind."""
        service = Service()
        client = await behind(service, v1=False)
        for n in range(1, 6):
            service.backplane.publish("a", b"no json %d" % n)
        await turns()
        client.read()
        assert await client.text() == '{"n":0}'
        assert [await client.text() for _ in range(5)] == [f"no json {n}" for n in range(1, 6)]
        await service.leave(client)

    @settings(deadline=None, max_examples=50)
    @given(
        steps=st.lists(
            st.binary(max_size=12)
            | st.dictionaries(st.text(max_size=3), st.text(max_size=8), max_size=2)
            | st.sampled_from(["durable", "read", "read one", "stop", "wait"]),
            max_size=30,
        )
    )
    def test_same_as_single_frames(self, steps: list[bytes | dict[str, str] | str]) -> None:
        """What a client reads out of arrays is to the byte what others got frame by frame."""
        asyncio.run(same_as_single_frames(steps))


async def same_as_single_frames(steps: list[bytes | dict[str, str] | str]) -> None:
    service = Service()
    client, neighbour = [await service.connect("a", v1=True) for _ in range(2)]
    acts: dict[str, Callable[[], object]] = {
        "durable": lambda: service.backplane.notify("a"),
        "read": client.read,
        "read one": client.read_one,
        "stop": client.stop_reading,
    }
    for step in steps:
        if isinstance(step, bytes):
            service.backplane.publish("a", step)
        elif isinstance(step, dict):
            service.backplane.publish("a", json.dumps(step, ensure_ascii=False).encode())
        elif step == "wait":
            await turns()
        else:
            acts[step]()
    await turns()
    client.read()
    await turns()
    singles = [await neighbour.text() for _ in range(neighbour.heard.qsize())]
    for _ in range(client.heard.qsize()):
        text = await client.text()
        count = len(objects(text))
        together, singles = singles[:count], singles[count:]
        assert text == (f"[{','.join(together)}]" if text.startswith("[") else together[0])
        assert count > 1 or not text.startswith("[")
    assert singles == []
    await service.leave(client, neighbour)


@dataclass(frozen=True)
class Bound:
    """One bound of a connection, and what takes a client that does not read beyond it."""

    service: Callable[[], Service]
    exceed: Callable[[Service, MemoryClient], Awaitable[None]]


async def publish_large(service: Service, client: MemoryClient) -> None:
    for _ in range(4):
        assert not client.socket.writable
        service.backplane.publish("a", HALF_A_WRITE)
        await turns(3)


async def publish_many(service: Service, client: MemoryClient) -> None:
    for n in range(1, 5):
        assert not client.socket.writable
        publish(service, n)
        await turns(3)


async def take_little(service: Service, client: MemoryClient) -> None:
    """Take one write, of two that are ready."""
    await publish_large(service, client)
    client.read_one()


async def take_nothing(service: Service, client: MemoryClient) -> None:
    publish(service, 1)
    assert not client.socket.writable


BOUNDS = {
    "bytes": Bound(
        lambda: Service(hub_limits=replace(HUB_LIMITS, outbox_max_bytes=3 * MAX_WRITE_BYTES // 2)),
        publish_large,
    ),
    "frames": Bound(
        lambda: Service(hub_limits=replace(HUB_LIMITS, outbox_max_frames=3)), publish_many
    ),
    "bytes of all": Bound(
        lambda: Service(hub_limits=replace(ROOMY, outboxes_max_bytes=3 * MAX_WRITE_BYTES // 2)),
        publish_large,
    ),
    "age": Bound(
        lambda: Service(hub_limits=ROOMY, limits=replace(LIMITS, max_age_s=1e-6)), take_little
    ),
    "stall": Bound(lambda: Service(limits=replace(LIMITS, write_timeout_s=0.001)), take_nothing),
}


class TestSlowClients:
    @BOTH
    @pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)
    async def test_bounds(self, bound: Bound, v1: bool) -> None:
        """A client that is too slow in any way ends with 4008, and its neighbour goes on."""
        service = bound.service()
        neighbour = await service.connect("a", v1=v1)
        stuck = await service.connect("a", v1=v1)
        (connection,) = [c for c in service.hub.connections() if c.peer is stuck.socket]
        await fall_behind(service, stuck)
        await bound.exceed(service, stuck)
        async with asyncio.timeout(GIVE_UP_AFTER_S):
            assert await connection.closing is SLOW_CONSUMER
        await turns()
        # It holds nothing but its socket.
        assert service.hub.statistics().connections == 1
        assert service.hub.statistics().waiting_bytes == 0
        assert service.hub.statistics().closed == {4008: 1}
        while not neighbour.has_heard_all:
            await neighbour.frame()
        await service.assert_live("a", neighbour)
        stuck.read()
        assert (await last_words(stuck)).code == 4008
        await service.leave(neighbour)

    async def test_client_that_reads_is_never_too_old(self) -> None:
        """A client that takes what comes may be sent more than any age, in one go or in several."""
        service = Service(hub_limits=ROOMY, limits=replace(LIMITS, max_age_s=1e-6))
        client = await service.connect("a")
        for _ in range(20):
            service.backplane.publish("a", HALF_A_WRITE)
        for _ in range(20):
            await client.text()
        await service.leave(client)

    async def test_slow_but_steady(self) -> None:
        """A client that takes one write after the other, each in time, stays."""
        service = Service(hub_limits=ROOMY)
        client = await behind(service, v1=True)
        await publish_large(service, client)
        for _ in range(5):
            await turns()
            client.read_one()
        await turns()
        assert [len(await client.text()) > 100 for _ in range(3)] == [False, True, True]
        client.read()
        await service.assert_live("a", client)
        await service.leave(client)

    async def test_stall_ends_when_the_client_takes_something(self) -> None:
        """A client that was slow for a while and then reads is not closed for that later."""
        service = Service(limits=replace(LIMITS, write_timeout_s=0.5))
        client = await service.connect("a")
        for n in range(3):
            client.stop_reading()
            publish(service, n)
            await turns(3)
            assert not client.socket.writable
            client.read()
            assert await client.text() == f'{{"n":{n}}}'
        stuck = await service.connect("a")
        (stalled,) = [c for c in service.hub.connections() if c.peer is stuck.socket]
        await fall_behind(service, stuck)
        async with asyncio.timeout(GIVE_UP_AFTER_S):
            # Its time began later, and is over.
            assert await stalled.closing is SLOW_CONSUMER
        stuck.read()
        assert (await last_words(stuck)).code == 4008
        assert service.hub.statistics().closed == {4008: 1}
        assert await client.text() == '{"n":0}'
        await service.assert_live("a", client)
        await service.leave(client)


async def last_words(client: MemoryClient) -> CloseFrame:
    """The close frame, whatever was on the network before it."""
    async with asyncio.timeout(GIVE_UP_AFTER_S):
        while isinstance(heard := await client.heard.get(), str):
            pass
    await client.ended()
    return heard


class TestFrameRate:
    @BOTH
    @pytest.mark.parametrize("control", [0, 1, 20])
    async def test_each_frame_counts(self, v1: bool, control: int) -> None:
        """Pings and other control frames count like messages: the 21st at once is one too many."""
        service = Service()
        client = await service.connect("a", v1=v1)
        (connection,) = service.hub.connections()
        for _ in range(control):
            client.ping()
        for _ in range(20 - control):
            client.say('{"type":"ping","nonce":1}')
        await turns()
        assert not connection.closing.done()
        client.ping()
        await turns()
        assert connection.closing.result() is RATE_LIMITED
        assert (await last_words(client)).code == 4009

    async def test_nothing_counts_after_the_end(self) -> None:
        """What a client goes on sending when it has been told to go changes nothing."""
        service = Service()
        client = await service.connect("a", client=MemoryClient(answers_close=False))
        client.say(b"binary")
        for _ in range(100):
            client.say("more")
        await turns()
        assert client.close_frame is not None
        assert client.close_frame.code == 1003
        client.leave(1003)
        await client.ended()
        assert service.hub.statistics().closed == {1003: 1}
        service.assert_nothing_left()
