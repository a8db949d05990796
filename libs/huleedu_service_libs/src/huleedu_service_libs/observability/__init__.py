"""Traces: spans, and the W3C trace context that carries them from process to process."""

from huleedu_service_libs.observability.propagation import (
    extract_trace_context,
    get_current_trace_id,
    inject_trace_context,
    use_trace_context,
)
from huleedu_service_libs.observability.tracing import (
    exports_spans,
    get_tracer,
    init_tracing,
    shutdown_tracing,
    trace_operation,
)

__all__ = [
    "exports_spans",
    "extract_trace_context",
    "get_current_trace_id",
    "get_tracer",
    "init_tracing",
    "inject_trace_context",
    "shutdown_tracing",
    "trace_operation",
    "use_trace_context",
]
