"""A client comes back: what it is told, and what it gets of what it has missed."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from opentelemetry.trace import format_trace_id

from huleedu_service_libs.notification_ids import NotificationId
from services.websocket_service.frames import ResyncReason
from services.websocket_service.tests.fakes import (
    HUB_LIMITS,
    MemoryClient,
    Service,
    objects,
    turns,
)

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"


def come_back(
    service: Service, cursor: str | None, client: MemoryClient | None = None
) -> MemoryClient:
    """User a's v1 client, which has asked for an upgrade."""
    token = service.issuer.token("a")
    return service.begin(client or MemoryClient(), token, v1=True, cursor=cursor)


async def welcomed(service: Service, cursor: str | None) -> tuple[MemoryClient, dict[str, Any]]:
    """The client, and the fields by which a `welcome` says where it stands."""
    client = come_back(service, cursor)
    frame = await client.frame()
    assert frame["type"] == "welcome"
    return client, {"cursor": frame["cursor"], "resumed": frame["resumed"]}


class TestResumed:
    @pytest.mark.parametrize("missed", [0, 1, 2, 3, 7])
    async def test_missed_ones_then_live_ones(self, missed: int) -> None:
        """A client that comes back gets all that it has missed, in order, then live ones."""
        service = Service()
        cursor = service.backplane.notify("a", event="seen", data={})
        missed_ids = [service.backplane.notify("a", event="missed", n=n) for n in range(missed)]
        client, welcome = await welcomed(service, cursor)
        assert welcome == {"cursor": [cursor, *missed_ids][-1], "resumed": True}
        assert await client.ids(missed) == missed_ids
        await turns()
        live = [service.backplane.notify("a", event="live", n=n) for n in range(3)]
        assert await client.ids(3) == live
        assert client.has_heard_all
        statistics = service.hub.statistics()
        assert statistics.resumes == {"resumed": 1}
        assert statistics.resyncs == {}
        assert (statistics.replayed, statistics.deliveries) == (missed, missed + 3)
        await service.leave(client)

    async def test_replayed_as_it_was_live(self) -> None:
        """A replayed notification is to the byte what a client that was there got."""
        service = Service()
        there = await service.connect("a", v1=True)
        cursor = service.backplane.notify("a", event="seen", data={})
        service.backplane.notify("a", event="é", data={"n": 1.50, "s": " 🦐\u2028", "type": "x"})
        service.backplane.notify("a", event="typed", type="of its own")
        await there.text()
        client, _ = await welcomed(service, cursor)
        assert [await client.text() for _ in range(2)] == [await there.text() for _ in range(2)]
        await service.leave(client, there)

    async def test_tabs_resume_each_from_its_own_place(self) -> None:
        """Two tabs that have seen different ones get each what it has missed itself."""
        service = Service()
        published = [service.backplane.notify("a", n=n) for n in range(6)]
        first, _ = await welcomed(service, published[0])
        second, _ = await welcomed(service, published[3])
        assert await first.ids(5) == published[1:]
        assert await second.ids(2) == published[4:]
        await service.assert_live("a", first, second)
        await service.leave(first, second)

    async def test_outdated_ones_are_not_replayed(self) -> None:
        """What has expired, or has a newer one of its key behind it, is not shown again."""
        service = Service()
        cursor = service.backplane.notify("a")
        published = [service.backplane.notify("a", collapse_key="k", n=n) for n in range(5)]
        published += [service.backplane.notify("a", n=n) for n in range(5)]
        service.backplane.histories["a"].expired.update(published[5:9])
        client, welcome = await welcomed(service, cursor)
        assert welcome["resumed"] is True
        assert await client.ids(2) == [published[4], published[9]]
        await service.assert_live("a", client)
        await service.leave(client)

    async def test_what_is_replayed_is_collapsed_with_live_ones(self) -> None:
        """A replayed one that still waits for a slow client goes when a newer one comes live."""
        service = Service()
        cursor = service.backplane.notify("a")
        waiting = [
            service.backplane.notify("a", collapse_key="k", n=1),
            service.backplane.notify("a", n=2),
        ]
        client = come_back(service, cursor, MemoryClient(reads=False))
        await turns()
        newer = service.backplane.notify("a", collapse_key="k", n=3)
        await turns()
        client.read()
        assert (await client.frame())["type"] == "welcome"
        assert await client.ids(2) == [waiting[1], newer]
        await service.leave(client)

    async def test_published_during_the_handshake(self) -> None:
        """What is published while a client is connecting reaches it once."""
        service = Service()
        cursor = service.backplane.notify("a")
        service.backplane.acknowledges.clear()
        client = come_back(service, cursor)
        await turns()
        published = [service.backplane.notify("a", n=n) for n in range(3)]
        service.backplane.acknowledges.set()
        assert (await client.frame())["cursor"] == published[-1]
        live = service.backplane.notify("a")
        assert await client.ids(4) == [*published, live]
        await service.leave(client)

    async def test_trace_goes_on(self) -> None:
        """The way of a replayed notification shows in the trace of whoever published it."""
        service = Service()
        cursor = service.backplane.notify("a")
        service.backplane.notify("a", metadata={"traceparent": TRACEPARENT})
        client, _ = await welcomed(service, cursor)
        await client.ids(1)
        await service.leave(client)
        (span,) = [
            span for span in service.spans.get_finished_spans() if span.name == "websocket.forward"
        ]
        assert format_trace_id(span.context.trace_id) == TRACE_ID

    async def test_latency_is_that_of_live_ones(self) -> None:
        """How long ago a replayed notification was published says nothing of the delivery."""
        service = Service()
        cursor = service.backplane.notify("a", timestamp="2000-01-01T00:00:00+00:00")
        for _ in range(5):
            service.backplane.notify("a", timestamp="2000-01-01T00:00:00+00:00")
        client, _ = await welcomed(service, cursor)
        await client.ids(5)
        assert service.hub.statistics().latency.buckets[-1] == ("+Inf", 0)
        await turns()
        service.backplane.notify("a", timestamp="2999-01-01T00:00:00+00:00")
        await client.ids(1)
        assert service.hub.statistics().latency.buckets[0][1] == 1
        await service.leave(client)


class TestBackPressure:
    async def test_next_page_waits_for_the_client(self) -> None:
        """A long replay is read from Redis as fast as the client takes it, page by page."""
        service = Service()
        cursor = service.backplane.notify("a")
        missed = [service.backplane.notify("a", n=n) for n in range(6)]
        client = come_back(service, cursor, MemoryClient(reads=False))
        await turns()
        assert service.backplane.reads == 1
        client.read_one()
        assert (await client.frame())["resumed"] is True
        for page in range(3):
            await turns()
            # The page that is on its way, and none ahead.
            assert service.backplane.reads == page + 1
            client.read_one()
            assert await client.ids(2) == missed[2 * page : 2 * page + 2]
            assert client.has_heard_all
        await turns()
        assert service.backplane.reads == 3
        client.read()
        await service.assert_live("a", client)
        await service.leave(client)

    @pytest.mark.parametrize("read", range(5))
    async def test_client_that_stops_reading(self, read: int) -> None:
        """A client that stops reading in mid-replay holds one page, and nothing once it is gone."""
        service = Service()
        cursor = service.backplane.notify("a")
        for n in range(50):
            service.backplane.notify("a", n=n)
        client = come_back(service, cursor, MemoryClient(reads=False))
        for _ in range(read):
            await turns()
            client.read_one()
        await turns(100)
        (connection,) = service.hub.connections()
        assert len(connection.outbox) <= service.backplane.page_entries
        assert sum(len(objects(str(text))) for text in client.socket.unread) <= 2
        assert service.backplane.reads <= 1 + read
        await service.leave(client)

    async def test_live_ones_come_after_the_replay(self) -> None:
        """What is published during a replay comes after it, once, and in order."""
        service = Service()
        cursor = service.backplane.notify("a")
        missed = [service.backplane.notify("a", n=n) for n in range(4)]
        client = come_back(service, cursor, MemoryClient(reads=False))
        await turns()
        live = [service.backplane.notify("a", n=n) for n in range(2)]
        service.backplane.publish("a", b'{"raw":1}')
        live.append(service.backplane.notify("a"))
        await turns()
        client.read()
        assert (await client.frame())["type"] == "welcome"
        assert await client.ids(7) == missed + live
        assert await client.frame() == {"type": "notification", "raw": 1}
        await service.assert_live("a", client)
        assert client.has_heard_all
        await service.leave(client)

    async def test_reconnect_during_the_replay(self) -> None:
        """Redis may be lost and heard again while a replay is running: it makes no difference."""
        service = Service()
        cursor = service.backplane.notify("a")
        missed = [service.backplane.notify("a", n=n) for n in range(4)]
        client = come_back(service, cursor, MemoryClient(reads=False))
        await turns()
        missed.append(service.backplane.notify("a", delivered=False))
        service.backplane.reconnect()
        missed.append(service.backplane.notify("a"))
        service.backplane.reconnect()
        missed.append(service.backplane.notify("a", delivered=False))
        client.read()
        assert (await client.frame())["type"] == "welcome"
        assert await client.ids(len(missed)) == missed
        await service.assert_live("a", client)
        assert service.hub.statistics().resyncs == {}
        await service.leave(client)

    @pytest.mark.parametrize("trimmed", [4, 99])
    async def test_trimmed_during_the_replay(self, trimmed: int) -> None:
        """When the rest of a replay is lost before it is read the client is told, then goes on."""
        service = Service()
        cursor = service.backplane.notify("a")
        missed = [service.backplane.notify("a", n=n) for n in range(6)]
        client = come_back(service, cursor, MemoryClient(reads=False))
        await turns()
        del service.backplane.histories["a"].entries[: trimmed + 1]
        client.read()
        assert (await client.frame())["resumed"] is True
        assert await client.ids(2) == missed[:2]
        assert await client.frame() == {
            "type": "resync",
            "reason": "history_trimmed",
            "cursor": missed[-1],
        }
        await service.assert_live("a", client)
        statistics = service.hub.statistics()
        assert statistics.resyncs == {"history_trimmed": 1}
        assert statistics.replayed == 2
        await service.leave(client)

    async def test_page_larger_than_the_outbox(self) -> None:
        """A page that the outbox can't hold at once is handed on as the client reads."""
        service = Service(hub_limits=replace(HUB_LIMITS, outbox_max_frames=3))
        service.backplane.page_entries = 10
        cursor = service.backplane.notify("a")
        missed = [service.backplane.notify("a", n=n) for n in range(10)]
        client = come_back(service, cursor)
        assert (await client.frame())["resumed"] is True
        assert [(await client.frame())["id"] for _ in missed] == missed
        await service.leave(client)
        service.assert_nothing_left()


def forget(service: Service, seen: list[NotificationId]) -> None:
    del service.backplane.histories["a"]
    assert seen


def forget_and_begin_anew(service: Service, seen: list[NotificationId]) -> None:
    forget(service, seen)
    service.backplane.notify("a", event="of another age", data={})


def trim(service: Service, seen: list[NotificationId]) -> None:
    entries = service.backplane.histories["a"].entries
    del entries[: len(seen) + 1]


def expire(service: Service, seen: list[NotificationId]) -> None:
    service.backplane.histories["a"].entries.clear()
    assert seen


def roll_back(service: Service, seen: list[NotificationId]) -> None:
    """To before what was seen last; offsets are used again."""
    history = service.backplane.histories["a"]
    del history.entries[len(seen) - 1 :]
    history.last = seen[-2]
    for n in range(3):
        service.backplane.notify("a", event="again", n=n)


class TestNotResumed:
    @pytest.mark.parametrize(
        ("fate", "reason"),
        [
            (trim, ResyncReason.HISTORY_TRIMMED),
            (expire, ResyncReason.HISTORY_TRIMMED),
            (forget, ResyncReason.HISTORY_LOST),
            (forget_and_begin_anew, ResyncReason.HISTORY_LOST),
            (roll_back, ResyncReason.CURSOR_UNKNOWN),
        ],
    )
    async def test_fate_of_the_history(
        self, fate: Callable[[Service, list[NotificationId]], None], reason: ResyncReason
    ) -> None:
        """When nobody knows what followed the cursor the client is told why, and gets no part."""
        service = Service()
        seen = [service.backplane.notify("a", event="seen", n=n) for n in range(3)]
        for n in range(5):
            service.backplane.notify("a", event="missed", n=n)
        fate(service, seen)
        await self._told(service, seen[-1], reason)

    @pytest.mark.parametrize("cursor", ["5", "null", "5-7 ", "é", "x" * 5000])
    async def test_malformed_cursor(self, cursor: str) -> None:
        """A cursor that is none is unknown."""
        service = Service()
        service.backplane.notify("a")
        await self._told(service, cursor, ResyncReason.CURSOR_UNKNOWN)

    async def test_cursor_of_another_user(self) -> None:
        """A cursor of another user's is unknown, and shows nothing of theirs."""
        service = Service()
        cursors = [service.backplane.notify(user) for user in "ab"]
        service.backplane.notify("b", event="secret", data={})
        await self._told(service, cursors[1], ResyncReason.CURSOR_UNKNOWN)

    async def _told(self, service: Service, cursor: str, reason: ResyncReason) -> None:
        client, welcome = await welcomed(service, cursor)
        last = service.backplane.histories["a"].last
        newest = None if last is None or last.startswith("0-") else last
        assert welcome == {"cursor": newest, "resumed": False}
        assert await client.frame() == {
            "type": "resync",
            "reason": reason.value,
            "cursor": newest,
        }
        await turns()
        assert client.has_heard_all
        live = [service.backplane.notify("a", n=n) for n in range(2)]
        assert await client.ids(2) == live
        statistics = service.hub.statistics()
        assert statistics.resumes == {reason.value: 1}
        # Counted once: as a resume that failed, not as a loss on an open connection.
        assert statistics.resyncs == {}
        assert statistics.replayed == 0
        await service.leave(client)
        again, welcome = await welcomed(service, live[0])
        assert welcome == {"cursor": live[1], "resumed": True}
        assert await again.ids(1) == live[1:]
        await service.leave(again)


class TestWithoutACursor:
    @pytest.mark.parametrize("published", [0, 5])
    async def test_nothing_is_replayed(self, published: int) -> None:
        """A first visit shows nothing of the past, and says from where on one could resume."""
        service = Service()
        past = [service.backplane.notify("a", n=n) for n in range(published)]
        client, welcome = await welcomed(service, None)
        assert welcome == {"cursor": past[-1] if past else None, "resumed": None}
        live = [service.backplane.notify("a", n=n) for n in range(3)]
        assert await client.ids(3) == live
        statistics = service.hub.statistics()
        assert statistics.resumes == {}
        assert statistics.resyncs == {}
        assert statistics.replayed == 0
        await service.leave(client)

    async def test_published_during_the_handshake(self) -> None:
        """What is published while a client is connecting is part of its past, and only that."""
        service = Service()
        service.backplane.acknowledges.clear()
        client = come_back(service, None)
        await turns()
        past = [service.backplane.notify("a", n=n) for n in range(3)]
        service.backplane.acknowledges.set()
        welcome = await client.frame()
        assert (welcome["cursor"], welcome["resumed"]) == (past[-1], None)
        await service.assert_live("a", client)
        assert service.hub.statistics().resyncs == {}
        await service.leave(client)

    @pytest.mark.parametrize("v1", [False, True], ids=["plain", "v1"])
    async def test_published_once_it_is_open(self, v1: bool) -> None:
        """A connection opens when its past is known: what is published then is no part of it."""
        service = Service()
        service.backplane.answers.clear()
        client = service.begin(MemoryClient(), service.issuer.token("a"), v1=v1)
        await turns(50)
        assert not client.accepted.done()
        past = service.backplane.notify("a")
        service.backplane.answers.set()
        await client.connected()
        live = service.backplane.notify("a")
        if v1:
            assert (await client.frame())["cursor"] == past
        assert await client.ids(1) == [live]
        await service.leave(client)

    @pytest.mark.parametrize("cursor", ["1-1", "malformed"])
    async def test_plain_client(self, cursor: str) -> None:
        """A plain client can't resume: its cursor is not looked at, and it gets payloads only."""
        service = Service()
        service.backplane.notify("a")
        token = service.issuer.token("a")
        client = service.begin(MemoryClient(), token, cursor=cursor)
        await client.connected()
        await turns()
        service.backplane.notify("a", event="live", data={})
        payload = json.loads(await client.text())
        assert payload.keys() == {"id", "prev", "event", "data"}
        assert payload["event"] == "live"
        assert client.has_heard_all
        assert service.hub.statistics().resumes == {}
        await service.leave(client)


@pytest.mark.parametrize("v1", [False, True], ids=["plain", "v1"])
@pytest.mark.parametrize("cursor", [None, "5-7", "malformed"])
async def test_history_that_cannot_be_read(v1: bool, cursor: str | None) -> None:
    """While the history can't be read nobody is let in with a promise that can't be kept."""
    service = Service()
    service.backplane.readable = False
    client = service.begin(MemoryClient(), service.issuer.token("a"), v1=v1, cursor=cursor)
    if v1:
        assert (await client.frame())["error"]["code"] == "CONNECTION_ERROR"
    close = await client.closed()
    assert (close.code, close.fields["error_code"]) == (1013, "CONNECTION_ERROR")
    assert close.fields["retry_after_ms"] > 0
    assert "10.0.0.7" not in close.reason
    statistics = service.hub.statistics()
    assert statistics.opened == {}
    assert statistics.resumes == {}
    assert statistics.refused == {"connection_error": 1}
    service.assert_nothing_left()


async def test_a_copy_of_the_past_is_no_proof() -> None:
    """A history restored from a copy proves what is in the copy, and nothing that was after it."""
    service = Service()
    cursor = service.backplane.notify("a")
    backup = copy.deepcopy(service.backplane.histories["a"])
    lost = service.backplane.notify("a")
    service.backplane.histories["a"] = backup
    reused = service.backplane.notify("a")
    assert lost.partition("-")[0] == reused.partition("-")[0]
    up_to_date, welcome = await welcomed(service, lost)
    assert welcome == {"cursor": reused, "resumed": False}
    assert (await up_to_date.frame())["reason"] == "cursor_unknown"
    behind, welcome = await welcomed(service, cursor)
    assert welcome == {"cursor": reused, "resumed": True}
    assert await behind.ids(1) == [reused]
    await service.leave(up_to_date, behind)
