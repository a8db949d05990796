"""Live notifications go missing under an open connection: they are found, or the client knows."""

import asyncio
import copy
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from huleedu_service_libs.notification_ids import NotificationId
from services.websocket_service.protocols import BackplaneUnavailableError
from services.websocket_service.tests.fakes import (
    GIVE_UP_AFTER_S,
    HUB_LIMITS,
    CloseFrame,
    MemoryBackplane,
    MemoryClient,
    Service,
    turns,
)

BOTH = pytest.mark.parametrize("v1", [False, True], ids=["plain", "v1"])


async def resync(client: MemoryClient) -> tuple[str, str | None]:
    """The reason and the cursor of a resync, which must be what comes next."""
    frame = await client.frame()
    assert frame.keys() == {"type", "reason", "cursor"}
    assert frame["type"] == "resync"
    return frame["reason"], frame["cursor"]


class TestFilled:
    @BOTH
    @pytest.mark.parametrize("lost", [1, 2, 5])
    @pytest.mark.parametrize("before", [0, 3])
    async def test_lost_ones_come_before_newer_ones(self, v1: bool, lost: int, before: int) -> None:
        """What went missing goes out before anything newer does, and each goes out once."""
        service = Service()
        client = await service.connect("a", v1=v1)
        published = [service.backplane.notify("a", n=n) for n in range(before)]
        published += [service.backplane.notify("a", delivered=False) for _ in range(lost)]
        published += [service.backplane.notify("a", n=n) for n in range(3)]
        assert await client.ids(len(published)) == published
        await service.assert_live("a", client)
        assert client.has_heard_all
        statistics = service.hub.statistics()
        assert statistics.resyncs == {}
        assert statistics.resumes == {}
        # Those that came live too were taken from the history if they were there already.
        assert lost <= statistics.replayed <= lost + 3
        assert statistics.deliveries == len(published) + 1
        await service.leave(client)

    @BOTH
    async def test_reconnect_brings_what_was_missed(self, v1: bool) -> None:
        """Once Redis is heard again the client gets what it missed, also if nothing newer comes."""
        service = Service()
        client = await service.connect("a", v1=v1)
        published = [service.backplane.notify("a", n=n, delivered=n < 1) for n in range(6)]
        service.backplane.reconnect()
        assert await client.ids(6) == published
        await service.assert_live("a", client)
        await service.leave(client)

    @BOTH
    @pytest.mark.parametrize("published", [0, 1])
    async def test_reconnect_without_a_loss(self, v1: bool, published: int) -> None:
        """A loss of Redis in which nothing was missed is not seen by anybody."""
        service = Service()
        for _ in range(published):
            service.backplane.notify("a")
        client = await service.connect("a", v1=v1)
        for n in range(3):
            service.backplane.reconnect()
            await turns()
            assert service.backplane.reads == 1 + n + 1
        assert client.has_heard_all
        await service.assert_live("a", client)
        service.backplane.reconnect()
        await service.assert_live("a", client)
        assert service.hub.statistics().replayed == 0
        await service.leave(client)

    async def test_tabs_miss_different_ones(self) -> None:
        """Of two tabs each gets what it has missed, also while one of them does not read."""
        service = Service()
        first = await service.connect("a", v1=True)
        early = [service.backplane.notify("a", delivered=False) for _ in range(3)]
        second = await service.connect("a", v1=True)
        stuck = await service.connect("a", v1=True, client=MemoryClient(reads=False))
        late = [service.backplane.notify("a", delivered=False) for _ in range(3)]
        late.append(service.backplane.notify("a"))
        assert await first.ids(7) == early + late
        assert await second.ids(4) == late
        stuck.read()
        assert (await stuck.frame())["type"] == "welcome"
        assert await stuck.ids(4) == late
        await service.assert_live("a", first, second, stuck)
        await service.leave(first, second, stuck)

    @BOTH
    async def test_raw_payloads_stay_where_they_are(self, v1: bool) -> None:
        """Raw payloads between durable ones are neither looked up nor held back nor reordered."""
        service = Service()
        client = await service.connect("a", v1=v1)
        publish = service.backplane.publish
        publish("a", b'{"raw":0}')
        durable = [service.backplane.notify("a")]
        publish("a", b'{"raw":1}')
        durable += [service.backplane.notify("a", delivered=False) for _ in range(3)]
        durable.append(service.backplane.notify("a"))
        publish("a", b'{"raw":2}')
        frames = [await client.frame() for _ in range(8)]
        seen = [frame.get("id", frame.get("raw")) for frame in frames]
        assert seen == [0, durable[0], 1, *durable[1:], 2]
        assert service.backplane.reads == 1 + 2
        await service.leave(client)

    @BOTH
    async def test_raw_payloads_during_a_fill(self, v1: bool) -> None:
        """Raw payloads keep their order while a gap is filled; durable ones may overtake them."""
        service = Service()
        client = await service.connect("a", v1=v1)
        client.stop_reading()
        durable: list[str] = []
        for n in range(6):
            durable.append(service.backplane.notify("a", delivered=n % 3 == 2))
            service.backplane.publish("a", b'{"raw":%d}' % n)
        await turns()
        client.read()
        frames = [await client.frame() for _ in range(12)]
        assert [frame["id"] for frame in frames if "id" in frame] == durable
        assert [frame["raw"] for frame in frames if "raw" in frame] == list(range(6))
        await service.leave(client)

    @BOTH
    async def test_what_looks_durable_is_raw(self, v1: bool) -> None:
        """A payload whose `id` and `prev` are written in another way is nobody's business."""
        service = Service()
        client = await service.connect("a", v1=v1)
        service.backplane.notify("a")
        await client.frame()
        for payload in (
            '{"id": "7-7", "prev": "6-6", "event": "e"}',
            '{"id":"7-7","prev":"6-6"}',
            '{"prev":"6-6","id":"7-7","event":"e"}',
            ' {"id":"7-7","prev":"6-6","event":"e"}',
            '{"id":7,"prev":6,"event":"e"}',
        ):
            service.backplane.publish("a", payload.encode())
            assert await client.frame() == json.loads(payload) | (
                {"type": "notification"} if v1 else {}
            )
        assert service.backplane.reads == 1
        await service.assert_live("a", client)
        await service.leave(client)

    @BOTH
    async def test_filling_waits_for_the_client(self, v1: bool) -> None:
        """A client that does not read is not sent a whole history: page by page, as in a replay."""
        service = Service()
        client = await service.connect("a", v1=v1)
        client.stop_reading()
        published = [service.backplane.notify("a", delivered=False) for _ in range(20)]
        service.backplane.reconnect()
        await turns(100)
        (connection,) = service.hub.connections()
        assert len(connection.outbox) <= service.backplane.page_entries
        assert service.backplane.reads == 2
        client.read()
        assert await client.ids(20) == published
        await service.assert_live("a", client)
        await service.leave(client)

    @BOTH
    async def test_outdated_ones_are_left_out(self, v1: bool) -> None:
        """Of what went missing only what still matters is shown; live copies of the rest are not.

        Their copies come live while the client is already past them.
        """
        service = Service()
        client = await service.connect("a", v1=v1)
        await service.assert_live("a", client)
        first = service.backplane.notify("a", delivered=False)
        older = [service.backplane.notify("a", collapse_key="k", n=n) for n in range(5)]
        expired = service.backplane.notify("a")
        service.backplane.histories["a"].expired.add(expired)
        newest = service.backplane.notify("a", collapse_key="k", n=5)
        assert newest not in older
        assert await client.ids(2) == [first, newest]
        await service.assert_live("a", client)
        assert service.hub.statistics().resyncs == {}
        await service.leave(client)


def trim(service: Service) -> None:
    entries = service.backplane.histories["a"].entries
    del entries[:-1]


def expire(service: Service) -> None:
    service.backplane.histories["a"].entries.clear()


def forget(service: Service) -> None:
    del service.backplane.histories["a"]
    service.backplane.notify("a", delivered=False)


def roll_back(service: Service) -> None:
    history = service.backplane.histories["a"]
    del history.entries[2:]
    history.last = history.entries[-1].id
    for _ in range(3):
        service.backplane.notify("a", delivered=False)


LOSSES = pytest.mark.parametrize(
    ("loss", "reason"),
    [
        (trim, "history_trimmed"),
        (expire, "history_trimmed"),
        (forget, "history_lost"),
        (roll_back, "history_lost"),
    ],
)
Loss = Callable[[Service], None]


class TestNotFilled:
    @LOSSES
    @pytest.mark.parametrize("noticed_by", ["reconnect", "newer one", "both"])
    async def test_v1_client_is_told(self, loss: Loss, reason: str, noticed_by: str) -> None:
        """When what went missing can't be found a v1 client is told, once, and goes on."""
        service = Service()
        client = await service.connect("a", v1=True)
        seen = [service.backplane.notify("a", n=n) for n in range(3)]
        assert await client.ids(3) == seen
        for _ in range(4):
            service.backplane.notify("a", delivered=False)
        loss(service)
        if noticed_by != "newer one":
            service.backplane.reconnect()
            await turns()
        live = service.backplane.notify("a") if noticed_by != "reconnect" else None
        newest = service.backplane.histories["a"].entries[-1].id if live or loss != expire else None
        told = await resync(client)
        if noticed_by == "both":
            assert await client.ids(1) == [live]
        elif newest is not None:
            # Its application fetches a state that holds this one.
            assert told == (reason, newest)
        assert told[0] == reason
        await service.assert_live("a", client)
        assert client.has_heard_all
        assert service.hub.statistics().resyncs == {reason: 1}
        assert service.hub.statistics().resumes == {}
        await service.leave(client)

    @LOSSES
    @pytest.mark.parametrize("reconnects", [False, True])
    async def test_plain_client_is_sent_away(
        self, loss: Loss, reason: str, reconnects: bool
    ) -> None:
        """A plain client can't be told, so its connection ends, with a code to come back."""
        service = Service()
        client = await service.connect("a")
        seen = [service.backplane.notify("a", n=n) for n in range(3)]
        assert await client.ids(3) == seen
        for _ in range(4):
            service.backplane.notify("a", delivered=False)
        loss(service)
        if reconnects:
            service.backplane.reconnect()
        else:
            service.backplane.notify("a")
        close = await client.closed()
        assert (close.code, close.fields["error_code"]) == (1013, "CONNECTION_ERROR")
        assert "Notifications were missed".startswith(close.fields["message"])
        assert close.fields["message"]
        assert close.fields["retry_after_ms"] > 0
        statistics = service.hub.statistics()
        assert statistics.resyncs == {reason: 1}
        assert statistics.closed == {1013: 1}
        service.assert_nothing_left()

    @BOTH
    async def test_everything_lost_between_two(self, v1: bool) -> None:
        """Redis loses all its data between two live ones: nobody takes the second for the third."""
        service = Service()
        client = await service.connect("a", v1=v1)
        first = service.backplane.notify("a", n=1)
        assert await client.ids(1) == [first]
        service.backplane.histories.clear()
        second = service.backplane.notify("a", n=2)
        assert first.startswith("1-")
        assert second.startswith("1-")
        if not v1:
            assert (await client.closed()).code == 1013
            return
        assert await resync(client) == ("history_lost", second)
        await service.assert_live("a", client)
        await service.leave(client)

    async def test_everything_lost_before_the_first(self) -> None:
        """A user who had nothing yet is told too: something may have come and gone."""
        service = Service()
        client = await service.connect("a", v1=True)
        service.backplane.notify("a", delivered=False)
        service.backplane.histories.clear()
        service.backplane.reconnect()
        assert await resync(client) == ("history_lost", None)
        await service.assert_live("a", client)
        await service.leave(client)

    async def test_live_one_that_redis_has_lost_meanwhile(self) -> None:
        """A notification that was heard, but is in no history, was not the only one to be lost."""
        service = Service()
        client = await service.connect("a", v1=True)
        first = service.backplane.notify("a")
        assert await client.ids(1) == [first]
        backup = copy.deepcopy(service.backplane.histories["a"])
        service.backplane.notify("a", delivered=False)
        service.backplane.notify("a")
        service.backplane.histories["a"] = backup
        assert await resync(client) == ("history_lost", first)
        await service.assert_live("a", client)
        await service.leave(client)

    @BOTH
    async def test_live_one_of_a_master_that_was_replaced(self, v1: bool) -> None:
        """One that is heard from another master than the history is read of was lost with it."""
        service = Service()
        client = await service.connect("a", v1=v1)
        first = service.backplane.notify("a")
        assert await client.ids(1) == [first]
        replaced = copy.deepcopy(service.backplane.histories["a"])
        read = [service.backplane.notify("a", delivered=False) for _ in range(3)]
        service.backplane.reconnect()
        assert await client.ids(3) == read
        service.backplane.publish("a", replaced.append({"event": "e", "data": {}}).payload)
        if not v1:
            assert (await client.closed()).code == 1013
            return
        assert await resync(client) == ("history_lost", read[-1])
        await service.assert_live("a", client)
        await service.leave(client)

    async def test_told_once_of_all_that_came_from_a_master_that_was_replaced(self) -> None:
        """A client is told once of all that had come by then."""
        service = Service()
        client = await service.connect("a", v1=True)
        first = service.backplane.notify("a")
        assert await client.ids(1) == [first]
        replaced = copy.deepcopy(service.backplane.histories["a"])
        read = [service.backplane.notify("a", delivered=False) for _ in range(3)]
        service.backplane.reconnect()
        assert await client.ids(3) == read
        for _ in range(3):
            service.backplane.publish("a", replaced.append({"event": "e", "data": {}}).payload)
        assert await resync(client) == ("history_lost", read[-1])
        await service.assert_live("a", client)
        assert service.hub.statistics().resyncs == {"history_lost": 1}
        await service.leave(client)

    async def test_told_once_of_two_losses(self) -> None:
        """A client is told once, also if what it has seen and what it has just heard are lost."""
        service = Service()
        client = await service.connect("a", v1=True)
        first = service.backplane.notify("a")
        backup = copy.deepcopy(service.backplane.histories["a"])
        second = service.backplane.notify("a")
        assert await client.ids(2) == [first, second]
        service.backplane.notify("a", delivered=False)
        service.backplane.notify("a")
        service.backplane.histories["a"] = backup
        assert await resync(client) == ("history_lost", first)
        await service.assert_live("a", client)
        await service.leave(client)

    async def test_each_tab_is_told(self) -> None:
        """All tabs of the user learn of a loss, whatever they speak; other users do not."""
        service = Service()
        tabs = [await service.connect("a", v1=v1) for v1 in (True, True, False)]
        other = await service.connect("b", v1=True)
        service.backplane.notify("a")
        for tab in tabs:
            await tab.text()
        del service.backplane.histories["a"]
        service.backplane.reconnect()
        for tab in tabs[:2]:
            assert (await resync(tab))[0] == "history_lost"
        assert (await tabs[2].closed()).code == 1013
        await service.assert_live("a", *tabs[:2])
        await turns()
        assert other.has_heard_all
        assert service.hub.statistics().resyncs == {"history_lost": 3}
        await service.leave(other, *tabs[:2])

    async def test_full_outbox_when_it_has_to_be_told(self) -> None:
        """A client that can't even be told ends as slow: it resumes, and is told then."""
        service = Service(hub_limits=replace(HUB_LIMITS, outbox_max_frames=3))
        client = await service.connect("a", v1=True)
        client.stop_reading()
        service.backplane.notify("a")
        await turns()
        for _ in range(3):
            service.backplane.publish("a", b"{}")
        await turns()
        del service.backplane.histories["a"]
        service.backplane.reconnect()
        await turns()
        client.read()
        while (frame := await client.frame())["type"] != "error":
            assert frame["type"] == "notification"
        assert (await client.closed()).code == 4008
        service.assert_nothing_left()


class HalfReadableBackplane(MemoryBackplane):
    """Says what is newest once, then no more."""

    async def newest(self, user_id: str) -> NotificationId:
        if self.reads:
            raise BackplaneUnavailableError("no answer from 10.0.0.7:6379")
        return await super().newest(user_id)


async def assert_sent_away(service: Service, client: MemoryClient, *, v1: bool) -> None:
    """The client is told to come back, and no more."""
    close = await closed(client, v1=v1)
    assert (close.code, close.fields["error_code"]) == (1013, "CONNECTION_ERROR")
    assert "Try again later".startswith(close.fields["message"])
    assert "10.0.0.7" not in close.reason
    assert service.hub.statistics().closed == {1013: 1}
    assert service.hub.statistics().resyncs == {}
    service.assert_nothing_left()


class TestUnreadableHistory:
    @BOTH
    async def test_newer_ones_wait(self, v1: bool) -> None:
        """While Redis can't be asked, newer ones wait for what lies before them, and then come."""
        service = Service()
        client = await service.connect("a", v1=v1)
        published = [service.backplane.notify("a")]
        assert await client.ids(1) == published
        service.backplane.readable = False
        published = [service.backplane.notify("a", delivered=n > 1) for n in range(5)]
        service.backplane.publish("a", b'{"id":"raw"}')
        async with asyncio.timeout(GIVE_UP_AFTER_S):
            for _ in range(2):
                service.backplane.refused.clear()
                await service.backplane.refused.wait()
        assert client.has_heard_all
        service.backplane.readable = True
        assert await client.ids(6) == [*published, "raw"]
        await service.assert_live("a", client)
        await service.leave(client)

    async def test_neighbours_do_not_wait(self) -> None:
        """Other users, who miss nothing, get theirs meanwhile."""
        service = Service()
        client = await service.connect("a", v1=True)
        other = await service.connect("b", v1=True)
        service.backplane.readable = False
        missed = service.backplane.notify("a", delivered=False)
        live = service.backplane.notify("a")
        theirs = [service.backplane.notify("b") for _ in range(3)]
        assert await other.ids(3) == theirs
        assert client.has_heard_all
        service.backplane.readable = True
        assert await client.ids(2) == [missed, live]
        await service.leave(client, other)

    @BOTH
    @pytest.mark.parametrize("noticed_by", ["newer one", "reconnect"])
    async def test_for_good(self, v1: bool, noticed_by: str) -> None:
        """A history that stays unreadable ends the connection: the client can resume elsewhere."""
        service = Service(history_patience_s=0)
        client = await service.connect("a", v1=v1)
        service.backplane.notify("a", delivered=False)
        service.backplane.readable = False
        if noticed_by == "reconnect":
            service.backplane.reconnect()
        else:
            service.backplane.notify("a")
        await assert_sent_away(service, client, v1=v1)

    @BOTH
    async def test_while_a_new_position_is_looked_for(self, v1: bool) -> None:
        """A client is not told to start anew where nobody can say from where on."""
        service = Service(history_patience_s=0, backplane=HalfReadableBackplane())
        client = await service.connect("a", v1=v1)
        service.backplane.notify("a", delivered=False)
        service.backplane.histories.clear()
        service.backplane.reconnect()
        await assert_sent_away(service, client, v1=v1)

    async def test_in_mid_replay(self) -> None:
        """A replay that can't go on for good ends the connection too, and can be resumed."""
        service = Service(history_patience_s=0)
        published = [service.backplane.notify("a") for _ in range(8)]
        client = service.begin(
            MemoryClient(reads=False), service.issuer.token("a"), v1=True, cursor=published[0]
        )
        await turns()
        service.backplane.readable = False
        client.read()
        assert (await client.frame())["type"] == "welcome"
        assert await client.ids(2) == published[1:3]
        assert (await closed(client, v1=True)).code == 1013
        service.backplane.readable = True
        client = service.begin(
            MemoryClient(), service.issuer.token("a"), v1=True, cursor=published[2]
        )
        assert (await client.frame())["resumed"] is True
        assert await client.ids(5) == published[3:]
        await service.leave(client)


async def closed(client: MemoryClient, *, v1: bool) -> CloseFrame:
    if v1:
        assert (await client.frame())["type"] == "error"
    return await client.closed()


class TestCollapsing:
    @BOTH
    @pytest.mark.parametrize("durable", [True, False])
    async def test_updates_do_not_fill_the_queue(self, v1: bool, durable: bool) -> None:
        """A client that does not read while a thing is updated again and again stays, and is told.

        It gets the newest update, and all else in order.
        """
        service = Service(hub_limits=replace(HUB_LIMITS, outbox_max_frames=5))
        client = await service.connect("a", v1=v1)
        client.stop_reading()

        def update(n: int) -> None:
            if durable:
                service.backplane.notify("a", collapse_key="k", n=n)
            else:
                service.backplane.publish("a", b'{"collapse_key":"k","n":%d}' % n)

        service.backplane.notify("a", n="first")
        await turns()
        for n in range(300):
            update(n)
            if n in {100, 200}:
                service.backplane.notify("a", n=f"after {n}")
        await turns(400)
        client.read()
        frames = [await client.frame() for _ in range(4)]
        assert [frame["n"] for frame in frames] == ["first", "after 100", "after 200", 299]
        await service.assert_live("a", client)
        assert service.backplane.reads == 1
        await service.leave(client)

    async def test_every_update_reaches_a_client_that_reads(self) -> None:
        """A client that keeps up gets each update; its neighbour, which does not, the newest."""
        service = Service()
        client = await service.connect("a", v1=True)
        slow = await service.connect("a", v1=True)
        slow.stop_reading()
        published = []
        for n in range(20):
            published.append(service.backplane.notify("a", collapse_key="k", n=n))
            assert await client.ids(1) == published[-1:]
        slow.read()
        assert await slow.ids(2) == [published[0], published[-1]]
        await service.leave(client, slow)

    async def test_other_peoples_keys(self) -> None:
        """Keys are told apart to the letter, and a payload that merely has the field has none."""
        service = Service()
        client = await service.connect("a")
        client.stop_reading()
        service.backplane.publish("a", b"{}")
        await turns()
        payloads: list[dict[str, Any]] = [{"collapse_key": key} for key in ("k", "K", "é", "k")]
        for n, payload in enumerate(payloads):
            text = json.dumps({**payload, "n": n}, ensure_ascii=False, separators=(",", ":"))
            service.backplane.publish("a", text.encode())
        service.backplane.publish("a", b'{"n":4,"collapse_key":"k"}')
        service.backplane.publish("a", b'{"collapse_key": "k", "n": 5}')
        await turns()
        client.read()
        assert await client.frame() == {}
        assert [(await client.frame())["n"] for _ in range(5)] == [1, 2, 3, 4, 5]
        await service.leave(client)
