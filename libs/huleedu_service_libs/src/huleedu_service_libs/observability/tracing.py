"""Spans, and their export if somebody collects them.

A collector is never waited for: spans are queued in memory and sent by a thread of their own, a
full queue drops spans, and the end of the process waits at most `SHUTDOWN_TIMEOUT_S`.
"""

from __future__ import annotations

import atexit
import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from opentelemetry import propagate, trace
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from huleedu_service_libs.observability.propagation import W3C_TRACE_CONTEXT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, Tracer
    from opentelemetry.util.types import AttributeValue

__all__ = [
    "SHUTDOWN_TIMEOUT_S",
    "exports_spans",
    "get_tracer",
    "init_tracing",
    "shutdown_tracing",
    "trace_operation",
]

SHUTDOWN_TIMEOUT_S = 2.0
"""How long the last spans may take. The SDK's own bound is 30 s, and it has no parameter."""

_ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


class _Tracing:
    """The process's tracer provider with what its shutdown needs."""

    def __init__(self, service_name: str) -> None:
        # `shutdown_tracing` takes the place of the SDK's exit hook, which may wait for 30 s.
        self.provider = TracerProvider(
            resource=Resource.create({SERVICE_NAME: service_name}), shutdown_on_exit=False
        )
        self._exporter = _configured_exporter()
        if self._exporter is not None:
            self.provider.add_span_processor(BatchSpanProcessor(self._exporter))

    @property
    def exports(self) -> bool:
        return self._exporter is not None

    def shutdown(self, timeout_s: float) -> None:
        if self._exporter is None:
            return
        # Sending goes on in daemon threads, which don't outlive the process.
        flush = threading.Thread(
            target=self.provider.shutdown, name="tracing-shutdown", daemon=True
        )
        flush.start()
        flush.join(timeout_s)
        if flush.is_alive():
            # Ends the retries, for a process that lives on.
            self._exporter.shutdown()


_lock = threading.Lock()
_tracing: _Tracing | None = None


def init_tracing(service_name: str) -> Tracer:
    """Install tracing for the process, once, and return the service's tracer.

    Spans are exported by OTLP over HTTP if OTEL_EXPORTER_OTLP_ENDPOINT (a base URL) or
    OTEL_EXPORTER_OTLP_TRACES_ENDPOINT (the full URL) is set, and else go nowhere, though trace ids
    still appear in logs and messages. The SDK's other variables hold: OTEL_SDK_DISABLED,
    OTEL_TRACES_SAMPLER, OTEL_RESOURCE_ATTRIBUTES, OTEL_BSP_*. A provider that something else has
    installed before is kept. Later calls only return a tracer: the first service name stays.
    """
    global _tracing  # noqa: PLW0603 - OpenTelemetry's provider is one per process, so is this
    with _lock:
        if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            _tracing = _Tracing(service_name)
            trace.set_tracer_provider(_tracing.provider)
            propagate.set_global_textmap(W3C_TRACE_CONTEXT)
            atexit.register(shutdown_tracing)
    return trace.get_tracer(service_name)


def get_tracer(name: str) -> Tracer:
    """The tracer of that name; before `init_tracing` its spans go nowhere."""
    return trace.get_tracer(name)


def exports_spans() -> bool:
    """Whether anybody gets the spans: an endpoint, or a provider that something else installed."""
    provider = trace.get_tracer_provider()
    if _tracing is not None and provider is _tracing.provider:
        return _tracing.exports
    return not isinstance(provider, trace.ProxyTracerProvider)


def shutdown_tracing(timeout_s: float = SHUTDOWN_TIMEOUT_S) -> None:
    """Send what is queued, for at most `timeout_s`; later spans are dropped.

    Blocks: call it in a thread or after the event loop. Runs by itself when the process exits.
    """
    with _lock:
        if _tracing is not None:
            _tracing.shutdown(timeout_s)


@contextmanager
def trace_operation(
    tracer: Tracer,
    operation_name: str,
    attributes: Mapping[str, AttributeValue] | None = None,
) -> Iterator[Span]:
    """A span around the block, a child of the current one.

    An exception is recorded on the span, sets its status to ERROR, and goes on. Cancellation is
    no error and is not recorded.
    """
    with tracer.start_as_current_span(operation_name, attributes=attributes) as span:
        yield span


def _configured_exporter() -> SpanExporter | None:
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if disabled or not any(os.environ.get(variable) for variable in _ENDPOINT_VARIABLES):
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
        OTLPSpanExporter,  # imports requests: a tenth of a second that others need not pay
    )

    return OTLPSpanExporter()
