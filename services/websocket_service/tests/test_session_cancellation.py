"""A client may vanish, and a server may give up, at any moment of a connection's life."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from huleedu_service_libs.notification_ids import NotificationId
from services.websocket_service.close_reasons import DRAINING
from services.websocket_service.tests.fakes import LIMITS, MemoryClient, Service

# The longest of these lives takes fewer event loop turns; a test that gets there has failed.
MAX_TURNS = 400


@dataclass
class Life:
    """A connection, and what happens to it in which turn of the event loop."""

    service: Service
    client: MemoryClient
    cursor: NotificationId | None = None

    def publish(self) -> None:
        self.service.backplane.publish("a", b'{"event":"a","data":{}}')

    def flood(self) -> None:
        for _ in range(60):
            self.publish()

    def ping(self) -> None:
        self.client.say('{"type":"ping","nonce":1}')

    def binary(self) -> None:
        self.client.say(b"binary")

    def drain(self) -> None:
        for connection in self.service.hub.connections():
            connection.close(DRAINING)

    def lose_redis(self) -> None:
        self.service.backplane.fail(RedisConnectionError("gone"))

    def break_down(self) -> None:
        self.service.backplane.fail(ZeroDivisionError("a defect"))

    def violate(self) -> None:
        self.client.violate(1007)

    def stop_reading(self) -> None:
        self.client.stop_reading()

    def read_again(self) -> None:
        self.client.read()

    def miss(self) -> None:
        """Be away while five are published."""
        ids = [self.service.backplane.notify("a") for _ in range(6)]
        self.cursor = ids[0]

    def notify(self) -> None:
        self.service.backplane.notify("a")

    def lose_some(self) -> None:
        for _ in range(5):
            self.service.backplane.notify("a", delivered=False)

    def hear_redis_again(self) -> None:
        self.service.backplane.reconnect()

    def lose_history(self) -> None:
        self.service.backplane.histories.clear()

    def make_unreadable(self) -> None:
        self.service.backplane.readable = False

    def make_readable(self) -> None:
        self.service.backplane.readable = True


# Before the connection begins.
BEFORE = -1
Script = dict[int, Callable[[Life], None]]
LIVES: dict[str, Script] = {
    "binary frame": {20: Life.publish, 30: Life.ping, 40: Life.binary},
    "drain at once": {6: Life.drain},
    "drain with a queue": {
        15: Life.stop_reading,
        16: Life.flood,
        40: Life.drain,
        60: Life.read_again,
    },
    "redis lost": {20: Life.lose_redis},
    "defect": {20: Life.break_down},
    "violation": {20: Life.violate},
    "slow client": {
        15: Life.stop_reading,
        16: Life.flood,
        17: Life.flood,
        18: Life.flood,
        60: Life.read_again,
    },
    "resume": {BEFORE: Life.miss, 5: Life.notify, 20: Life.notify, 60: Life.drain},
    "resume of a slow client": {
        BEFORE: Life.miss,
        7: Life.stop_reading,
        25: Life.hear_redis_again,
        40: Life.read_again,
        44: Life.stop_reading,
        50: Life.drain,
        60: Life.read_again,
    },
    "failed resume": {BEFORE: Life.miss, 0: Life.lose_history, 12: Life.notify, 60: Life.drain},
    "history lost in a replay": {
        BEFORE: Life.miss,
        9: Life.lose_history,
        40: Life.notify,
        80: Life.drain,
    },
    "gap": {20: Life.lose_some, 21: Life.notify, 24: Life.hear_redis_again, 80: Life.drain},
    "gap that can't be filled": {
        20: Life.lose_some,
        21: Life.lose_history,
        22: Life.hear_redis_again,
        26: Life.notify,
        60: Life.drain,
    },
    "history unreadable at first": {BEFORE: Life.make_unreadable},
    "history unreadable in a gap": {
        20: Life.lose_some,
        21: Life.make_unreadable,
        22: Life.notify,
        60: Life.drain,
    },
    "history unreadable in a replay": {
        BEFORE: Life.miss,
        10: Life.make_unreadable,
        40: Life.make_readable,
        60: Life.drain,
    },
}


class GivingUp(Enum):
    """Who has had enough."""

    SERVER = "server"
    SERVER_TWICE = "server twice"
    CLIENT = "client"
    NETWORK = "network"


async def live(
    script: Script, *, v1: bool, admitted: bool, give_up_in: int, giving_up: GivingUp
) -> bool:
    """Live for so many turns, then be given up; True where the life had ended before."""
    service = Service(limits=replace(LIMITS, frame_burst=1000))
    tokens = [service.issuer.token("a")] if admitted else []
    client = MemoryClient()
    life = Life(service, client)
    if BEFORE in script:
        script[BEFORE](life)
    service.begin(client, *tokens, v1=v1, cursor=life.cursor)
    session = client.session
    assert session is not None
    for turn in range(give_up_in):
        if turn in script:
            script[turn](life)
        await asyncio.sleep(0)
    ended = session.done()
    if giving_up is GivingUp.CLIENT:
        client.leave()
    elif giving_up is GivingUp.NETWORK:
        client.leave(None)
    else:
        session.cancel()
    if giving_up is GivingUp.SERVER_TWICE:
        await asyncio.sleep(0)
        session.cancel()
    await client.ended()
    assert session.cancelled() or session.result() is None
    if giving_up is GivingUp.SERVER_TWICE:
        # The session's own task was told to stop; it could not wait until it had.
        for _ in range(3):
            await asyncio.sleep(0)
    service.assert_nothing_left()
    statistics = service.hub.statistics()
    assert sum(statistics.opened.values()) == sum(statistics.closed.values())
    assert statistics.duration.buckets[-1][1] == sum(statistics.closed.values())
    return ended


async def give_up_in_every_turn(
    script: Script, *, v1: bool, admitted: bool, giving_up: GivingUp
) -> None:
    for turn in range(MAX_TURNS):
        if await live(script, v1=v1, admitted=admitted, give_up_in=turn, giving_up=giving_up):
            return
    pytest.fail("this life does not end")


@pytest.mark.parametrize("giving_up", GivingUp)
@pytest.mark.parametrize("v1", [False, True], ids=["plain", "v1"])
@pytest.mark.parametrize("script", LIVES.values(), ids=LIVES)
async def test_nothing_is_left(script: Script, v1: bool, giving_up: GivingUp) -> None:
    """Whenever a connection is cut off, no entry, no subscription and no task of it is left."""
    await give_up_in_every_turn(script, v1=v1, admitted=True, giving_up=giving_up)


@pytest.mark.parametrize("giving_up", GivingUp)
@pytest.mark.parametrize("v1", [False, True], ids=["plain", "v1"])
async def test_nothing_is_left_of_a_refusal(v1: bool, giving_up: GivingUp) -> None:
    """Whenever a client that is being refused vanishes, nothing of it is left."""
    await give_up_in_every_turn({}, v1=v1, admitted=False, giving_up=giving_up)


@pytest.mark.parametrize("give_up_in", range(12))
async def test_redis_that_never_acknowledges(give_up_in: int) -> None:
    """A server that stops while Redis keeps a client waiting leaves no subscription behind."""
    service = Service()
    service.backplane.acknowledges.clear()
    client = service.begin(MemoryClient(), service.issuer.token("a"))
    for _ in range(give_up_in):
        await asyncio.sleep(0)
    assert client.session is not None
    client.session.cancel()
    await client.ended()
    assert not client.accepted.done()
    assert service.hub.statistics().opened == {}
    service.assert_nothing_left()


@pytest.mark.parametrize("leave_in", range(12))
async def test_redis_that_acknowledges_late(leave_in: int) -> None:
    """A client that vanishes while Redis keeps it waiting is not let in once Redis answers."""
    service = Service()
    service.backplane.acknowledges.clear()
    client = service.begin(MemoryClient(), service.issuer.token("a"))
    for _ in range(leave_in):
        await asyncio.sleep(0)
    client.leave(None)
    service.backplane.acknowledges.set()
    await client.ended()
    assert not client.accepted.done()
    assert service.hub.statistics().opened == {}
    service.assert_nothing_left()
