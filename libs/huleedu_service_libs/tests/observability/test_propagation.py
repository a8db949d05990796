from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from werkzeug.datastructures import Headers

from huleedu_service_libs.observability import (
    extract_trace_context,
    get_current_trace_id,
    inject_trace_context,
    trace_operation,
    use_trace_context,
)

if TYPE_CHECKING:
    from libs.huleedu_service_libs.tests.observability.conftest import RunPython

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"
TRACER = TracerProvider(shutdown_on_exit=False).get_tracer("tests")


def test_trace_goes_on_in_another_process() -> None:
    """A message carries its sender's trace, and the receiver's spans are part of it."""
    carrier: dict[str, Any] = {"kept": 1}
    with trace_operation(TRACER, "send") as sent:
        trace_id = get_current_trace_id()
        inject_trace_context(carrier)
    assert carrier.pop("kept") == 1
    assert set(carrier) == {"traceparent"}

    with use_trace_context(carrier), trace_operation(TRACER, "receive"):
        assert get_current_trace_id() == trace_id
        carried = extract_trace_context(carrier)
    assert trace.get_current_span(carried).get_span_context().span_id == (
        sent.get_span_context().span_id
    )


def test_vendor_state_is_passed_on() -> None:
    """What another vendor's tracing has put into tracestate survives us."""
    onward: dict[str, str] = {}
    with use_trace_context({"traceparent": TRACEPARENT, "tracestate": "vendor=1"}):
        inject_trace_context(onward)
    assert onward == {"traceparent": TRACEPARENT, "tracestate": "vendor=1"}


def test_request_headers_are_a_carrier() -> None:
    """The headers of an HTTP request can be read as they are, whatever their case."""
    with use_trace_context(Headers([("TraceParent", TRACEPARENT)])):
        assert get_current_trace_id() == TRACE_ID


def test_nothing_is_injected_outside_a_span() -> None:
    """A message sent outside any trace is left as it is."""
    carrier: dict[str, str] = {}
    inject_trace_context(carrier)
    assert carrier == {}
    assert get_current_trace_id() is None


@pytest.mark.parametrize("carrier", [None, {}, {"traceparent": "garbage"}])
def test_message_without_a_trace_begins_its_own(carrier: dict[str, Any] | None) -> None:
    """Handling a message without a trace is not booked under the reader's own trace."""
    with trace_operation(TRACER, "reader"):
        outer = get_current_trace_id()
        with use_trace_context(carrier):
            assert get_current_trace_id() is None
        assert get_current_trace_id() == outer


def test_context_is_restored_after_a_failure() -> None:
    """A handler that fails does not leave its trace behind for the next message."""
    with pytest.raises(ValueError, match="oops"), use_trace_context({"traceparent": TRACEPARENT}):
        raise ValueError("oops")
    assert get_current_trace_id() is None


def test_propagation_does_not_depend_on_the_environment(run_python: RunPython) -> None:
    """OTEL_PROPAGATORS can't make one service of the platform speak another format."""
    script = """
from opentelemetry import propagate
from huleedu_service_libs.observability import *
with trace_operation(init_tracing("orders"), "send"):
    ours, theirs = {}, {}
    inject_trace_context(ours)
    propagate.inject(theirs)
print(list(ours), list(theirs))
"""
    finished = run_python(script, OTEL_PROPAGATORS="baggage")
    assert finished.lines == ["['traceparent'] ['traceparent']"]


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
nearly_a_traceparent = st.from_regex(
    re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-fx]{2}.?", re.DOTALL)
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "traceparent": anything | nearly_a_traceparent | st.just(TRACEPARENT),
            "tracestate": anything | st.from_regex(r"([a-z=,\s]|\W){0,600}"),
        },
    )
)
def test_hostile_metadata_is_harmless(carrier: dict[str, Any]) -> None:
    """Whatever a message's metadata holds, reading its trace yields a valid one or none."""
    with use_trace_context(carrier):
        trace_id = get_current_trace_id()
    if trace_id is not None:
        assert trace_id in carrier["traceparent"]
    if carrier.get("traceparent") == TRACEPARENT:
        assert trace_id == TRACE_ID
