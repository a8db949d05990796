"""What a trace shows of a notification's last mile, as a collector receives it."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import pytest
import pytest_asyncio
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import format_trace_id
from redis.asyncio import Redis

from common_core.events.envelope import EventEnvelope
from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_server import RedisServer
from tests.functional.closes import closed
from tests.functional.collector import Collector, attributes, collector
from tests.functional.raw_websocket import raw_websocket
from tests.functional.tokens import WAYS, by_subprotocol_in_v1
from tests.functional.v1_tab import publish, v1_tab
from tests.service_process import ServiceProcess, token

pytestmark = pytest.mark.asyncio(loop_scope="module")

TRACE_ID: Final = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID: Final = "b7ad6b7169203331"
TRACEPARENT: Final = f"00-{TRACE_ID}-{PARENT_ID}-01"
CONNECTION: Final = "websocket.connection"
VALIDATION: Final = "websocket.validate_token"
FORWARDING: Final = "websocket.forward"


@asynccontextmanager
async def traced_service(redis_url: str) -> AsyncIterator[tuple[ServiceProcess, Collector]]:
    """A service that exports its spans to a collector of its own."""
    async with (
        collector() as spans,
        ServiceProcess(redis_url, settings=spans.settings) as service,
    ):
        yield service, spans


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def traced(redis_server: RedisServer) -> AsyncIterator[tuple[ServiceProcess, Collector]]:
    async with traced_service(redis_server.url) as pair:
        yield pair


def named(name: str) -> Callable[[Span], bool]:
    return lambda span: span.name == name


def envelope() -> str:
    """An event as the backend services publish it."""
    return EventEnvelope[dict[str, str]](
        event_type="batch_results_ready",
        source_service="result_aggregator_service",
        data={"batch_id": "b-1"},
        metadata={"traceparent": TRACEPARENT, "tracestate": "vendor=x"},
    ).model_dump_json()


def plain_object() -> str:
    """A notification as any process can publish it."""
    return json.dumps(
        {
            "event": "batch_results_ready",
            "data": {"batch_id": "b-1"},
            "metadata": {"traceparent": TRACEPARENT},
        }
    )


@pytest.mark.parametrize("payload", [envelope(), plain_object()], ids=["envelope", "object"])
@pytest.mark.parametrize("subprotocols", [(), ("huleedu.notify.v1",)])
async def test_forwarding_continues_the_publishers_trace(
    traced: tuple[ServiceProcess, Collector],
    redis: Redis,
    payload: str,
    subprotocols: tuple[str, ...],
) -> None:
    """The span of a delivery is a child of the span in which the notification was published."""
    service, collector = traced
    before = len([span for span in collector.spans if span.name == FORWARDING])
    async with service.connect(subprotocols=subprotocols) as tab:
        assert await redis.publish("ws:teacher-1", payload) == 1
        await tab.recv()
        span = (await collector.wait_for(named(FORWARDING), before + 1))[-1]
    assert span.trace_id.hex() == TRACE_ID
    assert span.parent_span_id.hex() == PARENT_ID
    assert span.kind == Span.SPAN_KIND_CONSUMER
    assert span.end_time_unix_nano >= span.start_time_unix_nano > 0


async def test_replay_continues_the_publishers_trace(
    traced: tuple[ServiceProcess, Collector], publisher: RedisClient
) -> None:
    """A notification that was missed shows in its publisher's trace once it is delivered."""
    service, collector = traced
    cursor, *_ = await publish(publisher, "teacher-1", [0])
    with TracerProvider(shutdown_on_exit=False).get_tracer("t").start_as_current_span("e") as span:
        await publish(publisher, "teacher-1", [1])
    context = span.get_span_context()
    async with v1_tab(service, "teacher-1", cursor) as tab:
        (frame,) = await tab.notifications(1)
    assert frame["metadata"]["traceparent"].split("-")[1] == format_trace_id(context.trace_id)
    (delivery,) = await collector.wait_for(
        lambda span: span.trace_id == context.trace_id.to_bytes(16)
    )
    assert delivery.name == FORWARDING
    assert delivery.parent_span_id == context.span_id.to_bytes(8)


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {},
        [TRACEPARENT],
        {"traceparent": None},
        {"traceparent": 1},
        {"traceparent": ""},
        {"traceparent": "00-0-0-00"},
        {"traceparent": f"00-{'0' * 32}-{PARENT_ID}-01"},
        {"traceparent": TRACEPARENT.upper()},
        {"traceparent": TRACEPARENT, "tracestate": 1},
        {"traceparent": TRACEPARENT, "tracestate": "=" * 600},
    ],
    ids=repr,
)
async def test_odd_metadata_does_not_stop_a_notification(
    traced: tuple[ServiceProcess, Collector], redis: Redis, metadata: object
) -> None:
    """A trace context that makes no sense is ignored; the notification arrives as published."""
    service, _ = traced
    payload = json.dumps({"event": "e", "data": {}, "metadata": metadata})
    async with service.connect() as tab:
        assert await redis.publish("ws:teacher-1", payload) == 1
        assert await tab.recv() == payload
        assert await redis.publish("ws:teacher-1", "next") == 1
        assert await tab.recv() == "next"


async def test_a_connection_has_a_few_spans_however_many_frames_it_carries(
    redis_server: RedisServer, redis: Redis
) -> None:
    """One span for the connection and one for the token check, and none per frame."""
    async with traced_service(redis_server.url) as (service, collector):
        async with service.connect(subprotocols=["huleedu.notify.v1"]) as tab:
            await tab.recv()
            for n in range(50):
                assert await redis.publish("ws:teacher-1", f'{{"event":"{n}"}}') == 1
                await tab.recv()
                await tab.send('{"type": "ping", "nonce": 1}')
                await tab.recv()
        [connection] = await collector.wait_for(named(CONNECTION))
        await service.terminate()
        spans = [span for span in collector.spans if span.trace_id == connection.trace_id]
        assert FORWARDING not in {span.name for span in collector.spans}
    [validation] = [span for span in spans if span.name == VALIDATION]
    assert validation.parent_span_id == connection.span_id
    assert attributes(validation)["token.result"] == "valid"
    assert attributes(connection)["websocket.dialect"] == "huleedu.notify.v1"
    assert not connection.parent_span_id
    assert {span.name for span in spans} == {CONNECTION, VALIDATION}


async def test_a_client_may_bring_its_own_trace(
    traced: tuple[ServiceProcess, Collector],
) -> None:
    """A handshake with a `traceparent` is part of the client's trace."""
    service, collector = traced
    trace_id = "11111111111111111111111111111111"
    headers = [("traceparent", f"00-{trace_id}-{PARENT_ID}-01")]
    async with raw_websocket(service.port, token=token(), headers=headers) as client:
        assert client.status == 101
    spans = await collector.wait_for(lambda span: span.trace_id.hex() == trace_id, 2)
    assert {CONNECTION, VALIDATION} == {span.name for span in spans}
    [connection] = [span for span in spans if span.name == CONNECTION]
    assert connection.parent_span_id.hex() == PARENT_ID


async def test_a_refusal_is_a_span_that_says_why(
    traced: tuple[ServiceProcess, Collector],
) -> None:
    """The token check of a refused client has the reason, and its connection the close code."""
    service, collector = traced
    async with service.connect(bearer=token(exp=0)) as tab:
        await closed(tab)
    [validation] = await collector.wait_for(
        lambda span: attributes(span).get("token.result") == "token_expired"
    )
    [connection] = await collector.wait_for(
        lambda span: span.name == CONNECTION and span.trace_id == validation.trace_id
    )
    assert attributes(connection)["websocket.close_code"] == 1008


async def test_a_header_that_is_no_text_is_no_error(
    traced: tuple[ServiceProcess, Collector],
) -> None:
    """Whatever bytes a client sends, it is answered as always; the span is that of the route."""
    service, collector = traced
    before = sum(map(named("GET /healthz"), collector.spans))
    status, _, _ = await service.raw_http(
        b"GET /healthz?a=%FF HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        b"User-Agent: \xff\xfe\\x\r\ntracestate: \xff\\x\r\n\r\n"
    )
    assert status == 200
    span = (await collector.wait_for(named("GET /healthz"), before + 1))[-1]
    assert attributes(span)["http.target"] == "/healthz"
    assert "http.user_agent" not in attributes(span)


@pytest.mark.parametrize("expired", [False, True])
@pytest.mark.parametrize("way", [*WAYS, "v1"])
async def test_no_token_is_in_any_span(
    traced: tuple[ServiceProcess, Collector], way: str, *, expired: bool
) -> None:
    """Whichever way a token comes, and whether it is good or not, no span has it."""
    service, collector = traced
    bearer = token(jti=way, exp=0) if expired else token(jti=way)
    connections = sum(map(named(CONNECTION), collector.spans))
    async with {**WAYS, "v1": by_subprotocol_in_v1}[way](service, bearer) as tab:
        if expired:
            await closed(tab)
    await collector.wait_for(named(CONNECTION), connections + 1)
    status, _, _ = await service.http(
        f"/ws?token={bearer}", headers={"Authorization": f"Bearer {bearer}", "User-Agent": way}
    )
    assert status == 426
    await collector.wait_for(lambda span: way in str(span.attributes) and "426" in str(span))
    exported = collector.text()
    _, claims, signature = bearer.split(".")
    assert bearer not in exported
    assert claims not in exported
    assert signature not in exported
