"""What the gateway lets out of itself: traces, and never a secret."""

import json

from huleedu_service_libs.redis_server import RedisServer
from huleedu_service_libs.testing.kafka_broker import KafkaBroker
from huleedu_service_libs.testing.kafka_records import record_reader
from tests.functional.collector import attributes, collector
from tests.gateway_process import (
    COMMANDS_TOPIC,
    GATEWAY_HYPERCORN,
    GATEWAY_SERVE,
    INTERNAL_API_KEY,
    GatewayProcess,
)
from tests.service_process import SECRET, token

PATTERN = "/v1/batches/{batch_id}/pipelines"
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT_ID = "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"


async def test_a_command_continues_the_trace_of_its_client(
    kafka: KafkaBroker, redis_server: RedisServer
) -> None:
    """From the page's request over the gateway's spans into the event, it is one trace."""
    async with (
        collector() as exported,
        GatewayProcess(
            kafka=kafka.bootstrap_servers, redis_url=redis_server.url, settings=exported.settings
        ) as gateway,
    ):
        status, _, _ = await gateway.request_pipeline(
            "batch-7", headers={"traceparent": TRACEPARENT, "tracestate": "vendor=value"}
        )
        assert status == 202
        (publishing,) = await exported.wait_for(lambda s: s.name == "gateway.publish_command")
        (request,) = await exported.wait_for(lambda s: s.name == f"POST {PATTERN}")
        assert gateway.output().count(TRACE_ID) > 0
    assert request.trace_id.hex() == publishing.trace_id.hex() == TRACE_ID
    assert request.parent_span_id.hex() == PARENT_ID
    assert publishing.parent_span_id == request.span_id
    assert attributes(publishing) == {
        "batch_id": "batch-7",
        "requested_pipeline": "spellcheck",
        "messaging.destination.name": COMMANDS_TOPIC,
    }
    assert attributes(request)["http.route"] == PATTERN
    async with record_reader(kafka.bootstrap_servers, COMMANDS_TOPIC) as reader:
        event = json.loads((await reader.next()).value or b"")
    assert event["metadata"]["tracestate"] == "vendor=value"
    _, trace_id, span_id, _ = event["metadata"]["traceparent"].split("-")
    assert (trace_id, span_id) == (TRACE_ID, publishing.span_id.hex())


async def test_a_command_that_fails_is_seen_in_its_trace(redis_server: RedisServer) -> None:
    """The span says which error the client got."""
    settings = {"API_GATEWAY_KAFKA_PUBLISH_TIMEOUT_SECONDS": "0.2"}
    async with (
        collector() as exported,
        GatewayProcess(
            redis_url=redis_server.url, settings={**settings, **exported.settings}
        ) as gateway,
    ):
        assert (await gateway.request_pipeline())[0] == 503
        (span,) = await exported.wait_for(lambda s: s.name == "gateway.publish_command")
    assert span.status.code == span.status.STATUS_CODE_ERROR
    assert attributes(span)["error.code"] == "KAFKA_PUBLISH_ERROR"


async def test_a_request_without_a_trace_begins_one(
    kafka: KafkaBroker, redis_server: RedisServer
) -> None:
    """Without a collector nothing is exported, and events have a trace id all the same."""
    async with GatewayProcess(kafka=kafka.bootstrap_servers, redis_url=redis_server.url) as gateway:
        for traceparent in ("", "nonsense", "00-0-0-00", f"00-{'0' * 32}-{'0' * 16}-01"):
            headers = {"traceparent": traceparent} if traceparent else {}
            assert (await gateway.request_pipeline(headers=headers))[0] == 202
    async with record_reader(kafka.bootstrap_servers, COMMANDS_TOPIC) as reader:
        events = [json.loads((await reader.next()).value or b"") for _ in range(4)]
    trace_ids = {event["metadata"]["traceparent"].split("-")[1] for event in events}
    assert len(trace_ids) == 4
    assert "0" * 32 not in trace_ids


async def test_a_header_that_is_no_text_is_no_error() -> None:
    """Whatever bytes a client sends, it is answered as always, and its request is a span."""
    async with (
        collector() as exported,
        GatewayProcess(settings=exported.settings) as gateway,
    ):
        status, _, _ = await gateway.raw_http(
            b"GET /v1/batches/b/status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            b"User-Agent: \xff\xfe\\x\r\ntracestate: \xff\\x\r\n\r\n"
        )
        assert status == 401
        (span,) = await exported.wait_for(lambda s: s.name.startswith("GET /v1/batches"))
    assert "http.user_agent" not in attributes(span)


async def test_no_secret_gets_out(kafka: KafkaBroker, redis_server: RedisServer) -> None:
    """However somebody hands it in, a token is in no log, no span, no metric and no answer."""
    bearer = token("teacher-1", jti="unlike-any-other")
    with_access_log = (
        *GATEWAY_HYPERCORN[:-1],
        *("--error-logfile", "-", "--log-level", "DEBUG", "--bind"),
    )
    for command in (GATEWAY_SERVE, with_access_log):
        async with (
            collector() as exported,
            GatewayProcess(
                kafka=kafka.bootstrap_servers,
                redis_url=redis_server.url,
                settings=exported.settings,
                command=command,
            ) as gateway,
        ):
            answers = [
                await gateway.request_pipeline(headers={"Authorization": authorization})
                for authorization in (
                    f"Bearer {bearer}",
                    f"Bearer {bearer}x",
                    f"Basic {bearer}",
                    bearer,
                )
            ]
            answers += [
                await gateway.http(f"/v1/batches/b/status?token={bearer}&access_token={bearer}"),
                await gateway.http(f"/ws/v1/status/client-1?token={bearer}"),
                await gateway.request_pipeline(password=bearer, requested_pipeline=bearer),
                await gateway.request_pipeline(headers={"X-Correlation-ID": bearer}),
                await gateway.http("/metrics"),
                await gateway.http("/openapi.json"),
            ]
            await exported.wait_for(lambda s: s.name.startswith("GET /v1/batches"))
            await gateway.terminate()
            let_out = [
                gateway.output(),
                exported.text(),
                *(str(headers) + body.decode() for _, headers, body in answers),
            ]
        signature = bearer.rpartition(".")[2]
        for text in let_out:
            assert signature not in text
            assert SECRET not in text
            assert INTERNAL_API_KEY not in text
