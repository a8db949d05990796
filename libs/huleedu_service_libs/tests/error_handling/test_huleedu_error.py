import copy
import pickle
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode, Tracer

from common_core.error_enums import ClassManagementErrorCode, ErrorCode
from huleedu_service_libs.error_handling import HuleEduError, create_error_detail_with_context

CORRELATION_ID = UUID("5b0c0000-0000-4000-8000-000000000001")


class Finished:
    """A tracer, and the one span that was made with it."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self._provider = TracerProvider(shutdown_on_exit=False)
        self._provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer: Tracer = self._provider.get_tracer("test")

    @property
    def span(self) -> ReadableSpan:
        (span,) = self._exporter.get_finished_spans()
        return span

    def close(self) -> None:
        self._provider.shutdown()


@pytest.fixture
def finished() -> Iterator[Finished]:
    finished = Finished()
    yield finished
    finished.close()


def make_error(**details: Any) -> HuleEduError:
    return HuleEduError(
        create_error_detail_with_context(
            ErrorCode.TIMEOUT, "Redis did not answer", "svc", "subscribe", CORRELATION_ID, details
        )
    )


def test_an_error_reads_as_code_and_message() -> None:
    """A log line that has only the exception's text still says what kind of error it was."""
    assert str(make_error()) == "[TIMEOUT] Redis did not answer"


def test_a_debugger_shows_whose_error_it_is() -> None:
    """The representation names everything that one searches the logs by."""
    assert repr(make_error()) == (
        "HuleEduError(error_code='TIMEOUT', message='Redis did not answer', service='svc', "
        f"operation='subscribe', correlation_id='{CORRELATION_ID}')"
    )


def test_codes_and_ids_are_plain_text() -> None:
    """What goes into headers and log fields is text, whichever enum the code is from."""
    error = HuleEduError(
        create_error_detail_with_context(
            ClassManagementErrorCode.CLASS_NOT_FOUND, "m", "svc", "op", CORRELATION_ID
        )
    )
    assert type(error.error_code) is str
    assert (error.error_code, error.correlation_id) == ("CLASS_NOT_FOUND", str(CORRELATION_ID))


def test_a_dictionary_for_the_logs_holds_the_whole_detail() -> None:
    """The log has everything, the stack trace included."""
    error = make_error(channel="ws:u1")
    dumped = error.to_dict()
    assert dumped == {
        "error": "[TIMEOUT] Redis did not answer",
        "error_detail": error.error_detail.model_dump(),
    }
    assert dumped["error_detail"]["stack_trace"]


def test_adding_a_detail_leaves_the_original_alone() -> None:
    """A layer that knows more adds it without rewriting what the layer below said."""
    original = make_error(channel="ws:u1")
    extended = original.add_detail("attempt", 2).add_detail("channel", "ws:u2")
    assert original.error_detail.details == {"channel": "ws:u1"}
    assert extended.error_detail.details == {"channel": "ws:u2", "attempt": 2}
    assert extended.error_detail.correlation_id == original.error_detail.correlation_id
    assert extended.error_detail.timestamp == original.error_detail.timestamp


def test_adding_a_detail_keeps_the_kind_and_the_cause() -> None:
    """Traceback, cause and class survive, so that handlers further up still match."""

    class SubscribeError(HuleEduError):
        pass

    cause = ConnectionResetError("peer")
    with pytest.raises(SubscribeError) as caught:
        raise SubscribeError(make_error().error_detail) from cause
    extended = caught.value.add_detail("attempt", 2)
    assert type(extended) is SubscribeError
    assert extended.__cause__ is cause
    assert extended.__traceback__ is caught.value.__traceback__


@pytest.mark.parametrize("duplicate", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_an_error_crosses_processes(duplicate: Any) -> None:
    """An error raised in a worker process arrives with its detail."""
    error = make_error(attempt=1)
    assert duplicate(error).error_detail == error.error_detail


def test_the_span_is_marked_as_failed(finished: Finished) -> None:
    """Whoever looks at the trace sees which error it was without searching the logs."""
    with finished.tracer.start_as_current_span("work"):
        make_error(
            topic="t.v1", limit=5, ratio=0.5, fatal=True, ids=[1, 2], batch=CORRELATION_ID,
            huge=2**64, nothing=None,
        )  # fmt: skip

    span = finished.span
    assert (span.status.status_code, span.status.description) == (
        StatusCode.ERROR,
        "Redis did not answer",
    )
    assert dict(span.attributes or {}) == {
        "error": True,
        "error.code": "TIMEOUT",
        "error.message": "Redis did not answer",
        "error.service": "svc",
        "error.operation": "subscribe",
        "correlation_id": str(CORRELATION_ID),
        "error.details.topic": "t.v1",
        "error.details.limit": 5,
        "error.details.ratio": 0.5,
        "error.details.fatal": True,
        "error.details.ids": "[1, 2]",
        "error.details.batch": str(CORRELATION_ID),
        "error.details.huge": str(2**64),
        "error.details.nothing": "None",
    }
    (event,) = span.events
    attributes = event.attributes or {}
    assert event.name == "exception"
    assert attributes["exception.message"] == "[TIMEOUT] Redis did not answer"


def test_a_number_too_big_for_otlp_can_be_exported(finished: Finished) -> None:
    """One odd detail does not lose a whole batch of spans."""
    with finished.tracer.start_as_current_span("work"):
        make_error(huge=2**64, surrogate="\ud800")
    assert b"18446744073709551616" in encode_spans([finished.span]).SerializeToString()


def test_without_a_span_errors_are_plain_exceptions(finished: Finished) -> None:
    """An error made after a span has ended does not touch it."""
    with finished.tracer.start_as_current_span("work"):
        pass
    make_error()
    assert finished.span.status.status_code is StatusCode.UNSET
    assert not finished.span.events
