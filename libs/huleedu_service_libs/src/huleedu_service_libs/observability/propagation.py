"""W3C trace context (https://www.w3.org/TR/trace-context/) in headers and message metadata."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from opentelemetry import context, trace
from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping

    from opentelemetry.context import Context

__all__ = [
    "W3C_TRACE_CONTEXT",
    "TraceCarrier",
    "extract_trace_context",
    "get_current_trace_id",
    "inject_trace_context",
    "use_trace_context",
]

# Named here and not taken from OTEL_PROPAGATORS: a process where that variable differs would
# silently cut each trace that passes through it.
W3C_TRACE_CONTEXT = TraceContextTextMapPropagator()

_FIELDS = ("traceparent", "tracestate")


class TraceCarrier(Protocol):
    """What trace context is read from: a dict, or the headers of a Quart or FastAPI request."""

    def get(self, key: str, /) -> object: ...


class _StringsOnly(Getter[TraceCarrier]):
    """The library's own getter hands a number or null found in a message on to a regex."""

    def get(self, carrier: TraceCarrier, key: str) -> list[str] | None:
        value = carrier.get(key)
        return [value] if isinstance(value, str) else None

    def keys(self, carrier: TraceCarrier) -> list[str]:
        return [field for field in _FIELDS if self.get(carrier, field)]


_STRINGS_ONLY = _StringsOnly()


def inject_trace_context(carrier: MutableMapping[str, Any]) -> None:
    """Set `traceparent`, and `tracestate` if there is one; outside a span nothing is set."""
    W3C_TRACE_CONTEXT.inject(carrier)


def extract_trace_context(carrier: TraceCarrier | None) -> Context:
    """The context that `carrier` names: its remote span, or an empty context.

    Content of the wrong type or form, of whatever origin, counts as none.
    """
    if carrier is None:
        return context.Context()
    return W3C_TRACE_CONTEXT.extract(carrier, context.Context(), _STRINGS_ONLY)


@contextmanager
def use_trace_context(carrier: TraceCarrier | None) -> Iterator[Context]:
    """Within the block, spans continue the trace that `carrier` names.

    Without a usable one they begin a new trace: a message that came without a trace has nothing to
    do with the span in which its reader happened to be started.
    """
    extracted = extract_trace_context(carrier)
    token = context.attach(extracted)
    try:
        yield extracted
    finally:
        context.detach(token)


def get_current_trace_id() -> str | None:
    """32 hex digits, sampled or not; None outside a trace."""
    span_context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(span_context.trace_id) if span_context.is_valid else None
