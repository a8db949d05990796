from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from huleedu_service_libs.observability import trace_operation
from huleedu_service_libs.observability.tracing import SHUTDOWN_TIMEOUT_S

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

    from libs.huleedu_service_libs.tests.observability.conftest import Collector, RunPython

ONE_SPAN = """
from huleedu_service_libs.observability import *
tracer = init_tracing("orders")
with trace_operation(tracer, "operation", {"answer": 42}):
    print(get_current_trace_id())
"""
# Seconds: what an export that is waited for costs.
PATIENT_EXPORTER = {"OTEL_EXPORTER_OTLP_TIMEOUT": "60"}
TIMED_SPANS = """
import time
started = time.monotonic()
from huleedu_service_libs.observability import *
tracer = init_tracing("orders")
print(time.monotonic() - started)
started = time.monotonic()
for _ in range(5000):
    with trace_operation(tracer, "operation"):
        pass
print(time.monotonic() - started)
"""


def test_spans_reach_the_collector_when_the_process_ends(
    run_python: RunPython, collector: Collector
) -> None:
    """A process that just ends still delivers its last spans, under its service's name."""
    run_python(ONE_SPAN, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    assert collector.spans() == [("orders", "operation")]


def test_full_url_of_the_traces_endpoint_is_used_as_it_is(
    run_python: RunPython, collector: Collector
) -> None:
    """The endpoint for traces alone may be configured instead of the common one."""
    run_python(ONE_SPAN, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"{collector.url}/v1/traces")
    assert collector.spans() == [("orders", "operation")]


def test_second_init_adds_nothing(run_python: RunPython, collector: Collector) -> None:
    """Two parts of a program may both initialise tracing; each span is still sent once."""
    script = f"from huleedu_service_libs.observability import *\ninit_tracing('first'){ONE_SPAN}"
    run_python(script + "shutdown_tracing()", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    assert collector.spans() == [("first", "operation")]


def test_nothing_is_exported_unless_configured(run_python: RunPython) -> None:
    """Without an endpoint there are trace ids, but no exporter and no thread for one."""
    finished = run_python(
        ONE_SPAN
        + "import sys, threading\n"
        + "print(threading.active_count(), 'requests' in sys.modules)"
    )
    assert len(finished.lines[0]) == 32
    assert finished.lines[1] == "1 False"
    assert finished.stderr == ""


@pytest.mark.parametrize(
    "variables",
    [
        {"OTEL_SDK_DISABLED": "true"},
        {"OTEL_TRACES_SAMPLER": "always_off"},
        {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"},
    ],
)
def test_standard_variables_switch_export_off(
    variables: dict[str, str], run_python: RunPython, collector: Collector
) -> None:
    """The operator's usual switches work: a disabled SDK, a sampler that takes nothing."""
    run_python(ONE_SPAN, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **variables)
    assert collector.spans() == []


def test_provider_of_somebody_else_is_kept(run_python: RunPython, collector: Collector) -> None:
    """A process that is already instrumented from outside keeps its own tracing."""
    script = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
provider = TracerProvider()
trace.set_tracer_provider(provider)
from huleedu_service_libs.observability import *
init_tracing("orders")
print(trace.get_tracer_provider() is provider)
"""
    finished = run_python(script, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    assert finished.lines == ["True"]
    assert "not allowed" not in finished.stderr


def assert_unhindered(lines: list[str], exit_s: float) -> None:
    start_s, spans_s = map(float, lines)
    # Generous for a busy machine: an export in the way would take its timeout, PATIENT_EXPORTER's.
    assert start_s < 8
    assert spans_s < 8
    assert exit_s < SHUTDOWN_TIMEOUT_S + 6


def test_closed_port_slows_nothing(run_python: RunPython) -> None:
    """Where the collector should be nobody listens: start, work and end go on as ever."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        finished = run_python(TIMED_SPANS, OTEL_EXPORTER_OTLP_ENDPOINT=url, **PATIENT_EXPORTER)
    assert_unhindered(finished.lines, finished.exit_s)


def test_silent_collector_slows_nothing(run_python: RunPython) -> None:
    """A collector that accepts and never answers does not hold up start, work or end."""
    # The kernel completes handshakes for a listening socket; nobody ever reads from them.
    with socket.create_server(("127.0.0.1", 0)) as black_hole:
        url = f"http://127.0.0.1:{black_hole.getsockname()[1]}"
        finished = run_python(TIMED_SPANS, OTEL_EXPORTER_OTLP_ENDPOINT=url, **PATIENT_EXPORTER)
    assert_unhindered(finished.lines, finished.exit_s)


def test_explicit_shutdown_is_bounded_and_happens_once(run_python: RunPython) -> None:
    """A service that stops tracing itself waits for a silent collector once, not twice."""
    script = """
started = time.monotonic()
shutdown_tracing(timeout_s=0.2)
shutdown_tracing(timeout_s=100)
print(time.monotonic() - started)
"""
    with socket.create_server(("127.0.0.1", 0)) as black_hole:
        url = f"http://127.0.0.1:{black_hole.getsockname()[1]}"
        finished = run_python(
            TIMED_SPANS + script, OTEL_EXPORTER_OTLP_ENDPOINT=url, **PATIENT_EXPORTER
        )
    assert 0.2 <= float(finished.lines[-1]) < 8
    assert finished.exit_s < 8


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracer(exporter: InMemorySpanExporter) -> Tracer:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider.get_tracer("tests")


def only_span(exporter: InMemorySpanExporter) -> ReadableSpan:
    (span,) = exporter.get_finished_spans()
    return span


def test_operation_has_its_attributes(tracer: Tracer, exporter: InMemorySpanExporter) -> None:
    """Attributes may be given at the start and added to the span within."""
    with trace_operation(tracer, "publish", {"channel": "ws:1"}) as span:
        span.set_attribute("receivers", 2)
    span_read = only_span(exporter)
    assert span_read.name == "publish"
    assert dict(span_read.attributes or {}) == {"channel": "ws:1", "receivers": 2}
    assert span_read.status.is_unset


def test_exception_is_recorded_and_goes_on(tracer: Tracer, exporter: InMemorySpanExporter) -> None:
    """A failing operation is marked as failed, and its caller still gets the exception."""
    error = ValueError("too short")
    with pytest.raises(ValueError, match="too short") as caught, trace_operation(tracer, "parse"):
        raise error
    assert caught.value is error
    span = only_span(exporter)
    assert not span.status.is_ok
    assert not span.status.is_unset
    (event,) = span.events
    assert (event.attributes or {})["exception.type"] == "ValueError"


def test_cancellation_is_no_error(tracer: Tracer, exporter: InMemorySpanExporter) -> None:
    """A cancelled operation ends its span without marking it as failed."""
    with pytest.raises(asyncio.CancelledError), trace_operation(tracer, "wait"):
        raise asyncio.CancelledError
    assert only_span(exporter).status.is_unset
    assert only_span(exporter).events == ()
