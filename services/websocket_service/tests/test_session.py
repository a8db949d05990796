"""The life of a connection as its client sees it, up to the one reason for its end."""

import asyncio
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from opentelemetry.trace import format_trace_id
from redis.exceptions import ConnectionError as RedisConnectionError

from huleedu_service_libs.subscription import SubscriptionOverflowError
from services.websocket_service.close_reasons import DRAINING, CloseReason
from services.websocket_service.connection import Connection
from services.websocket_service.continuity import Opening
from services.websocket_service.frames import SUBPROTOCOL_V1, Dialect
from services.websocket_service.origins import AllowedOrigins
from services.websocket_service.outbound import OutboundFrame
from services.websocket_service.protocols import PayloadsProtocol
from services.websocket_service.tests.fakes import (
    HUB_LIMITS,
    LIMITS,
    CloseFrame,
    MemoryClient,
    MemorySocket,
    Service,
    turns,
)

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"
BOTH = pytest.mark.parametrize("v1", [False, True], ids=["plain", "v1"])


async def refusal(client: MemoryClient, *, v1: bool, correlation_id: UUID) -> CloseFrame:
    """The close frame; before it, in v1, the same as an error frame."""
    assert await client.connected() == (SUBPROTOCOL_V1 if v1 else None)
    error = (await client.frame())["error"] if v1 else None
    close = await client.closed()
    assert UUID(close.fields["correlation_id"]) == correlation_id
    if error is not None:
        assert error["code"] == close.fields["error_code"]
        assert error["correlation_id"] == str(correlation_id)
        assert error["message"].startswith(close.fields["message"])
    return close


class TestDelivery:
    async def test_plain_client_sees_payloads_only(self) -> None:
        """A plain client gets each payload as it was published, in order, and nothing else."""
        service = Service()
        client = await service.connect("teacher-1")
        payloads = [b'{"event": "a",  "data":{}}', b"no json at all", "Räksmörgås 🦐".encode(), b""]
        for payload in payloads:
            assert service.backplane.publish("teacher-1", payload) == 1
        assert [(await client.text()).encode() for _ in payloads] == payloads
        assert client.has_heard_all
        client.leave()
        await client.ended()
        service.assert_nothing_left()

    async def test_v1_client_sees_typed_frames(self) -> None:
        """A v1 client gets `welcome` first, then each notification with its type."""
        service = Service()
        client = service.begin(MemoryClient(), service.issuer.token("teacher-1"), v1=True)
        assert await client.connected() == SUBPROTOCOL_V1
        welcome = await client.frame()
        assert welcome["type"] == "welcome"
        assert welcome["user_id"] == "teacher-1"
        assert welcome["heartbeat_ms"] == 30_000
        assert welcome["connection_id"] == service.hub.connections()[0].id

        service.backplane.publish("teacher-1", b'{"event":"a","data":{"n":1}}')
        service.backplane.publish("teacher-1", b"no object")
        service.backplane.publish("teacher-1", b'{"event":"b","data":{}}')
        assert await client.frame() == {"type": "notification", "event": "a", "data": {"n": 1}}
        assert (await client.frame())["event"] == "b"
        assert service.hub.statistics().undeliverable == 1
        client.leave()
        await client.ended()

    async def test_everything_after_the_open(self) -> None:
        """What is published right after a client sees its connection open reaches it."""
        for n in range(100):
            service = Service()
            client = await service.connect()
            assert service.backplane.publish("teacher-1", b"%d" % n) == 1
            assert await client.text() == str(n)
            client.leave()
            await client.ended()

    async def test_users_do_not_mix(self) -> None:
        """Each user's tabs all get the user's notifications, and nobody else's."""
        service = Service()
        tabs = [await service.connect("a", v1=bool(n % 2)) for n in range(3)]
        other = await service.connect("b")
        assert service.backplane.publish("a", b'{"event":"for a"}') == 3
        assert service.backplane.publish("b", b"for b") == 1
        for tab in tabs:
            assert "for a" in await tab.text()
            assert tab.has_heard_all
        assert await other.text() == "for b"
        assert other.has_heard_all
        await service.hub.drain(timeout_s=20)

    async def test_slow_client_does_not_delay_its_neighbour(self) -> None:
        """A client that stops reading delays nobody else's notifications."""
        service = Service()
        stuck = await service.connect("a")
        stuck.stop_reading()
        neighbour = await service.connect("a")
        for n in range(50):
            service.backplane.publish("a", b"%d" % n)
            assert await neighbour.text() == str(n)
        stuck.read()
        assert [await stuck.text() for _ in range(50)] == [str(n) for n in range(50)]
        await service.hub.drain(timeout_s=20)

    async def test_payloads_of_any_backplane(self) -> None:
        """A backplane that brings plain bytes will do."""
        service = Service()
        client = await service.connect()
        service.backplane.publish_bytes("teacher-1", b"bytes")
        service.backplane.publish_bytes("teacher-1", b"more bytes")
        assert [await client.text(), await client.text()] == ["bytes", "more bytes"]
        client.leave()
        await client.ended()
        assert service.hub.statistics().latency.buckets[-1] == ("+Inf", 2)

    async def test_queue_is_emptied_before_the_goodbye(self) -> None:
        """What was waiting for a client that reads is written before the close frame."""
        service = Service()
        client = await service.connect()
        client.stop_reading()
        for n in range(5):
            service.backplane.publish("teacher-1", b"%d" % n)
        await turns()
        draining = asyncio.create_task(service.hub.drain(timeout_s=20))
        await turns()
        client.read()
        assert [await client.text() for _ in range(5)] == list("01234")
        assert (await client.closed()).code == 1012
        await draining
        assert service.hub.statistics().deliveries == 5

    async def test_busy_channel_does_not_put_off_the_goodbye(self) -> None:
        """Once a connection is to end, nothing new is queued for it, and nothing it says counts."""
        service = Service()
        client = await service.connect(v1=True)
        client.stop_reading()
        service.backplane.publish("teacher-1", b'{"n":1}')
        await turns()
        service.hub.connections()[0].close(DRAINING)
        await turns()
        service.backplane.publish("teacher-1", b'{"n":2}')
        client.say('{"type":"ping","nonce":1}')
        await turns()
        client.read()
        assert await client.frame() == {"type": "notification", "n": 1}
        assert (await client.frame())["type"] == "going_away"
        assert (await client.frame())["type"] == "error"
        assert (await client.closed()).code == 1012


class TestClientTexts:
    async def test_plain_texts_are_discarded(self) -> None:
        """Whatever text a plain client sends, its connection stays and nothing is answered."""
        service = Service()
        client = await service.connect()
        for text in ["", "hello", '{"type":"ping","nonce":1}', "{", "\x00", "é" * 50]:
            client.say(text)
        await turns()
        service.backplane.publish("teacher-1", b"still here")
        assert await client.text() == "still here"
        client.leave()
        await client.ended()

    async def test_v1_ping(self) -> None:
        """A ping is answered with its nonce."""
        service = Service()
        client = await service.connect(v1=True)
        client.say('{"type":"ping","nonce":{"n":[1,null]}}')
        assert await client.frame() == {"type": "pong", "nonce": {"n": [1, None]}}
        client.leave()
        await client.ended()

    @pytest.mark.parametrize(
        ("text", "field"), [("{", "frame"), ("{}", "type"), ('{"type":"ping"}', "nonce")]
    )
    async def test_v1_refuses_and_stays(self, text: str, field: str) -> None:
        """A bad frame is answered with an error that says what is wrong; the connection stays."""
        service = Service()
        client = await service.connect(v1=True)
        client.say(text)
        frame = await client.frame()
        assert frame["type"] == "error"
        assert frame["error"]["code"] == "VALIDATION_ERROR"
        assert frame["error"]["details"] == {"field": field}
        client.say('{"type":"ping","nonce":1}')
        assert (await client.frame())["type"] == "pong"
        client.leave()
        await client.ended()

    @BOTH
    @pytest.mark.parametrize("message", [b"binary", b""])
    async def test_binary(self, v1: bool, message: bytes) -> None:
        """A binary frame, even an empty one, ends the connection with 1003."""
        await self._ends(v1, [message], 1003, "INVALID_REQUEST")

    @BOTH
    @pytest.mark.parametrize("text", ["x" * 101, "é" * 51])
    async def test_oversize(self, v1: bool, text: str) -> None:
        """A message of more than the limit in bytes ends the connection with 1009."""
        await self._ends(v1, [text], 1009, "INVALID_REQUEST")

    @BOTH
    async def test_too_many(self, v1: bool) -> None:
        """A client that sends more than the burst at once ends with 4009."""
        await self._ends(v1, ['{"type":"ping","nonce":1}'] * 21, 4009, "RATE_LIMIT", pongs=20)

    async def test_answers_count_against_the_outbox(self) -> None:
        """A client that asks and does not read the answers ends with 4008."""
        service = Service(hub_limits=replace(HUB_LIMITS, outbox_max_frames=3))
        client = await service.connect(v1=True)
        client.stop_reading()
        client.say('{"type":"ping","nonce":0}')
        await turns()
        for nonce in range(1, 5):
            client.say(json.dumps({"type": "ping", "nonce": nonce}))
        await turns()
        client.read()
        # It was on the network already; what waited behind it is given up.
        assert await client.frame() == {"type": "pong", "nonce": 0}
        assert (await client.frame())["type"] == "error"
        assert (await client.closed()).code == 4008

    async def _ends(
        self,
        v1: bool,
        messages: list[str | bytes] | list[bytes] | list[str],
        code: int,
        error_code: str,
        *,
        pongs: int = 0,
    ) -> None:
        service = Service()
        client = await service.connect(v1=v1)
        (connection,) = service.hub.connections()
        for message in messages:
            client.say(message)
        for _ in range(pongs if v1 else 0):
            assert (await client.frame())["type"] == "pong"
        close = await refusal(client, v1=v1, correlation_id=connection.correlation_id)
        assert (close.code, close.fields["error_code"]) == (code, error_code)
        assert service.hub.statistics().closed == {code: 1}
        service.assert_nothing_left()


class TestRefusals:
    @BOTH
    @pytest.mark.parametrize(
        ("tokens", "message"),
        [
            ((), "Missing token"),
            (("unknown",), "Invalid token"),
            (("one", "two"), "Two different credentials"),
        ],
    )
    async def test_credential(self, v1: bool, tokens: tuple[str, ...], message: str) -> None:
        """A client without a good credential is let in just to hear 1008 and why."""
        service = Service()
        correlation_id = uuid4()
        client = service.begin(MemoryClient(), *tokens, v1=v1, correlation_id=correlation_id)
        close = await refusal(client, v1=v1, correlation_id=correlation_id)
        assert (close.code, close.fields["error_code"]) == (1008, "AUTHENTICATION_ERROR")
        assert message.startswith(close.fields["message"])
        assert close.fields["message"]
        assert not service.backplane.asked.is_set()
        assert service.hub.statistics().opened == {}
        service.assert_nothing_left()

    @BOTH
    async def test_origin(self, v1: bool) -> None:
        """A page of another origin is refused with 1008 before its token is looked at."""
        service = Service(origins=AllowedOrigins(["https://app.example.org"], allow_missing=True))
        correlation_id = uuid4()
        client = service.begin(
            MemoryClient(),
            service.issuer.token("a"),
            v1=v1,
            origin="https://evil.example",
            correlation_id=correlation_id,
        )
        close = await refusal(client, v1=v1, correlation_id=correlation_id)
        assert (close.code, close.fields["error_code"]) == (1008, "AUTHORIZATION_ERROR")
        assert service.hub.statistics().token_checks == {}
        assert service.hub.statistics().refused == {"origin_not_allowed": 1}
        service.assert_nothing_left()

    @BOTH
    async def test_quota(self, v1: bool) -> None:
        """A user's tab too many is refused with 4000; the others stay."""
        service = Service()
        clients = [await service.connect("a", v1=v1) for _ in range(3)]
        correlation_id = uuid4()
        fourth = service.begin(
            MemoryClient(), service.issuer.token("a"), v1=v1, correlation_id=correlation_id
        )
        close = await refusal(fourth, v1=v1, correlation_id=correlation_id)
        assert (close.code, close.fields["error_code"]) == (4000, "QUOTA_EXCEEDED")
        assert service.backplane.publish("a", b"{}") == 3
        for client in clients:
            await client.text()
        await service.hub.drain(timeout_s=20)
        service.assert_nothing_left()

    @BOTH
    async def test_full(self, v1: bool) -> None:
        """A full process sends clients away for a while with 1013."""
        service = Service(hub_limits=replace(HUB_LIMITS, max_connections=1))
        await service.connect("a")
        close = await self._try_later(service, v1)
        assert "Server is full".startswith(close.fields["message"])
        await service.hub.drain(timeout_s=20)
        service.assert_nothing_left()

    @BOTH
    async def test_backplane_away(self, v1: bool) -> None:
        """While Redis is away clients are told to come back later, and not where it is."""
        service = Service()
        service.backplane.available = False
        close = await self._try_later(service, v1)
        assert "10.0.0.7" not in close.reason
        service.assert_nothing_left()

    @BOTH
    async def test_no_key(self, v1: bool) -> None:
        """A service that cannot verify tokens tells clients to come back, and not what it lacks."""
        service = Service()
        service.issuer.has_key = False
        close = await self._try_later(service, v1)
        assert "JWT" not in close.reason
        assert service.hub.statistics().token_checks == {"unverifiable": 1}
        service.assert_nothing_left()

    async def test_defect_in_the_validator(self, caplog: pytest.LogCaptureFixture) -> None:
        """A defect while a token is checked closes with 1011 and is logged with its cause."""
        service = Service()
        service.issuer.failure = ZeroDivisionError("a defect")
        client = service.begin(MemoryClient(), service.issuer.token("a"))
        assert (await client.closed()).code == 1011
        assert service.hub.statistics().token_checks == {"unverifiable": 1}
        assert [r.levelname for r in caplog.records if "session failed" in str(r.msg)] == ["ERROR"]
        assert client.close_frame is not None
        assert "a defect" not in client.close_frame.reason
        service.assert_nothing_left()

    async def _try_later(self, service: Service, v1: bool) -> CloseFrame:
        correlation_id = uuid4()
        client = service.begin(
            MemoryClient(), service.issuer.token("z"), v1=v1, correlation_id=correlation_id
        )
        close = await refusal(client, v1=v1, correlation_id=correlation_id)
        assert (close.code, close.fields["error_code"]) == (1013, "CONNECTION_ERROR")
        assert 1000 <= close.fields["retry_after_ms"] <= 3000
        return close


class FailingListener:
    """Fails in whichever way, once the connection is there."""

    def __init__(self, failure: Exception) -> None:
        self._failure = failure

    async def listen(
        self, connection: Connection, payloads: PayloadsProtocol, opening: Opening
    ) -> CloseReason:
        assert connection.user_id
        assert opening.resumed is None
        await payloads.next_batch()
        raise self._failure


class TestEnds:
    @BOTH
    @pytest.mark.parametrize(
        ("failure", "code"),
        [
            (RedisConnectionError("gone"), 1013),
            (SubscriptionOverflowError("full"), 4008),
            (ZeroDivisionError("a defect"), 1011),
        ],
        ids=["redis lost", "overflow", "defect"],
    )
    async def test_failure_of_the_listener(self, v1: bool, failure: Exception, code: int) -> None:
        """A connection that no longer hears of notifications ends, with the code that fits."""
        service = Service()
        client = await service.connect(v1=v1)
        (connection,) = service.hub.connections()
        service.backplane.fail(failure)
        close = await refusal(client, v1=v1, correlation_id=connection.correlation_id)
        assert close.code == code
        assert "defect" not in close.reason
        assert service.hub.statistics().closed == {code: 1}
        service.assert_nothing_left()

    async def test_any_listener_may_fail(self) -> None:
        """A listener of another kind that fails ends its own connection and no other."""
        service = Service(listener=FailingListener(ValueError("boom")))
        first, second = await service.connect("a"), await service.connect("b")
        service.backplane.publish("a", b"x")
        assert (await first.closed()).code == 1011
        assert service.hub.statistics().connections == 1
        second.leave()
        await second.ended()
        service.assert_nothing_left()

    @BOTH
    @pytest.mark.parametrize("code", [1002, 1007, 1009])
    async def test_violation(self, v1: bool, code: int) -> None:
        """An invalid frame ends the connection with the code that RFC 6455 gives it."""
        service = Service()
        client = await service.connect(v1=v1)
        (connection,) = service.hub.connections()
        client.violate(code)
        close = await refusal(client, v1=v1, correlation_id=connection.correlation_id)
        assert close.code == code
        service.assert_nothing_left()

    async def test_slow_client(self) -> None:
        """A client whose queue is full ends with 4008, and what was waiting is given up."""
        service = Service()
        client = await service.connect()
        client.stop_reading()
        for n in range(102):
            service.backplane.publish("teacher-1", b"%d" % n)
            await turns(5)
        await turns()
        assert service.hub.statistics().closed == {4008: 1}
        client.read()
        # It was on the network already.
        assert await client.text() == "0"
        close = await client.closed()
        assert (close.code, close.fields["error_code"]) == (4008, "TIMEOUT")
        service.assert_nothing_left()

    async def test_client_that_never_reads_again(self) -> None:
        """A client that takes nothing, not even the close frame, is cut off."""
        service = Service(limits=replace(LIMITS, close_timeout_s=0.01))
        client = await service.connect()
        client.stop_reading()
        for n in range(102):
            service.backplane.publish("teacher-1", b"%d" % n)
            await turns(5)
        await client.ended()
        assert client.socket.aborted
        assert client.close_frame is None
        service.assert_nothing_left()

    async def test_last_words_to_a_stuck_client_are_bounded(self) -> None:
        """A client that reads nothing holds up its own end no longer than the close timeout."""
        service = Service(limits=replace(LIMITS, close_timeout_s=0.01))
        client = await service.connect(v1=True)
        client.stop_reading()
        service.backplane.publish("teacher-1", b"{}")
        await turns()
        service.hub.connections()[0].close(DRAINING)
        await client.ended()
        assert client.socket.aborted
        service.assert_nothing_left()

    async def test_released_before_the_close_frame(self) -> None:
        """A client that takes its time to answer the close frame holds nothing but its socket."""
        service = Service()
        client = await service.connect(client=MemoryClient(answers_close=False))
        client.say(b"binary")
        assert isinstance(await client.heard.get(), CloseFrame)
        assert service.hub.statistics().connections == 0
        assert service.hub.statistics().handshakes == 1
        assert service.backplane.subscriptions == 0
        client.say("still talking")
        await turns()
        client.leave(1003)
        await client.ended()
        assert not client.socket.aborted
        service.assert_nothing_left()

    @pytest.mark.parametrize(("close_code", "counted"), [(1000, 1000), (1001, 1000), (None, 1006)])
    async def test_client_leaves(self, close_code: int | None, counted: int) -> None:
        """A client that closes is told apart from one that vanishes."""
        service = Service()
        client = await service.connect()
        client.leave(close_code)
        await client.ended()
        assert client.session is not None
        assert client.session.result() is None
        assert client.close_frame is None
        assert service.hub.statistics().closed == {counted: 1}
        service.assert_nothing_left()

    @BOTH
    async def test_client_leaves_while_it_is_told_to_go(self, v1: bool) -> None:
        """A client that leaves while its queue is being written holds up nobody."""
        service = Service()
        client = await service.connect(v1=v1)
        client.stop_reading()
        for n in range(3):
            service.backplane.publish("teacher-1", b'{"n":%d}' % n)
            await turns()
        service.hub.connections()[0].close(DRAINING)
        await turns()
        assert service.hub.statistics().connections == 1
        client.leave()
        await turns()
        service.assert_nothing_left()
        assert service.hub.statistics().closed == {1012: 1}

    async def test_client_has_left_before_it_is_let_in(self) -> None:
        """A client that leaves during its handshake is no connection that was ever open."""
        service = Service()
        service.backplane.acknowledges.clear()
        client = service.begin(MemoryClient(), service.issuer.token("a"))
        await service.backplane.asked.wait()
        client.leave(None)
        service.backplane.acknowledges.set()
        await client.ended()
        assert not client.accepted.done()
        assert service.hub.statistics().opened == {}
        assert service.hub.statistics().closed == {}
        service.assert_nothing_left()

    async def test_write_that_fails(self, caplog: pytest.LogCaptureFixture) -> None:
        """A socket that fails under a write takes its own connection with it, and no other."""
        service = Service()
        client = await service.connect("a", client=BrokenClient())
        neighbour = await service.connect("a")
        service.backplane.publish("a", b"x")
        assert (await client.closed()).code == 1011
        assert [r.levelname for r in caplog.records if "write failed" in str(r.msg)] == ["ERROR"]
        assert await neighbour.text() == "x"
        await service.leave(neighbour)

    async def test_last_write_that_fails_is_not_lost(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A failure while the queue is emptied is logged, and the goodbye is said all the same."""
        service = Service()
        client = await service.connect("a", client=BrokenClient(after=1))
        client.stop_reading()
        for _ in range(2):
            service.backplane.publish("a", b"x")
            await turns()
        service.hub.connections()[0].close(DRAINING)
        await turns()
        client.read()
        assert await client.text() == "x"
        assert (await client.closed()).code == 1012
        assert [r.levelname for r in caplog.records if "write failed" in str(r.msg)] == ["ERROR"]
        service.assert_nothing_left()


class BrokenSocket(MemorySocket):
    """Fails after so many writes."""

    def __init__(self, client: MemoryClient, after: int) -> None:
        super().__init__(client)
        self._after = after

    def write(self, frames: Sequence[OutboundFrame]) -> None:
        if len(self.writes) >= self._after:
            raise ConnectionResetError(f"{len(frames)} frames for nobody")
        super().write(frames)


class BrokenClient(MemoryClient):
    def __init__(self, *, after: int = 0) -> None:
        super().__init__()
        self.socket = BrokenSocket(self, after)


class TestTelemetry:
    async def test_forwarding_continues_the_trace(self) -> None:
        """A notification's way to the browser shows in the trace of whoever published it."""
        service = Service()
        client = await service.connect()
        payload = {"event": "a", "data": {}, "metadata": {"traceparent": TRACEPARENT}}
        service.backplane.publish("teacher-1", json.dumps(payload).encode())
        service.backplane.publish("teacher-1", b'{"event":"untraced","data":{}}')
        await client.text()
        await client.text()
        client.leave()
        await client.ended()

        spans = {span.name: span for span in service.spans.get_finished_spans()}
        assert spans.keys() == {
            "websocket.validate_token",
            "websocket.connection",
            "websocket.forward",
        }
        assert format_trace_id(spans["websocket.forward"].context.trace_id) == TRACE_ID
        assert format_trace_id(spans["websocket.connection"].context.trace_id) != TRACE_ID
        assert len(service.spans.get_finished_spans()) == 3

    @BOTH
    async def test_token_is_in_no_span_and_no_log_line(
        self, v1: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A token, good or bad, is in nothing that is logged, traced, counted or sent."""
        caplog.set_level(logging.DEBUG)
        service = Service()
        good, bad = service.issuer.token("a"), "secret-of-somebody-else"
        clients = [
            service.begin(MemoryClient(), good, v1=v1),
            service.begin(MemoryClient(), bad, v1=v1),
            service.begin(MemoryClient(), good, bad, v1=v1),
        ]
        await clients[1].ended()
        await clients[2].ended()
        clients[0].leave()
        await clients[0].ended()

        seen = [span.to_json() for span in service.spans.get_finished_spans()]
        seen += [f"{record.__dict__} {record.getMessage()}" for record in caplog.records]
        seen += [repr(service.hub.statistics())]
        for client in clients:
            seen += [repr(client.heard.get_nowait()) for _ in range(client.heard.qsize())]
        assert caplog.records
        assert not [text for text in seen if "secret-" in text]

    async def test_counts(self) -> None:
        """Afterwards the books are balanced: as many closed as opened, and nobody there."""
        service = Service()
        first, second = await service.connect("a"), await service.connect("b", v1=True)
        service.backplane.publish("a", b"12345")
        await first.text()
        first.say(b"binary")
        await first.closed()
        second.leave()
        await second.ended()
        statistics = service.hub.statistics()
        assert statistics.opened == {Dialect.PLAIN: 1, Dialect.V1: 1}
        assert statistics.closed == {1003: 1, 1000: 1}
        assert statistics.delivered_bytes == 5
        assert statistics.duration.buckets[-1] == ("+Inf", 2)
        service.assert_nothing_left()

    async def test_expiry_is_known_to_the_client(self) -> None:
        """A v1 client learns when its token expires, and can get a new one in time."""
        service = Service()
        token = service.issuer.token("a", timedelta(minutes=5))
        client = service.begin(MemoryClient(), token, v1=True)
        welcome = await client.frame()
        (connection,) = service.hub.connections()
        assert welcome["token_expires_at"] == connection.claims.expires_at.isoformat()
        client.leave()
        await client.ended()
