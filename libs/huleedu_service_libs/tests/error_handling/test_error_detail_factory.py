import json
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from common_core.error_enums import ErrorCode, FileValidationErrorCode
from huleedu_service_libs.error_handling import (
    create_error_detail_with_context,
    public_error_body,
)


def test_an_error_knows_its_moment_and_request() -> None:
    """Each error is stamped with the time in UTC and the request's id."""
    before = datetime.now(UTC)
    correlation_id = uuid4()
    detail = create_error_detail_with_context(
        FileValidationErrorCode.EMPTY_CONTENT, "m", "svc", "op", correlation_id, {"size": 0}
    )
    assert before <= detail.timestamp <= datetime.now(UTC)
    assert detail.timestamp.utcoffset() == timedelta(0)
    assert detail.correlation_id == correlation_id
    assert detail.error_code is FileValidationErrorCode.EMPTY_CONTENT
    assert detail.details == {"size": 0}
    assert (detail.trace_id, detail.span_id) == (None, None)


def test_an_error_points_to_its_trace() -> None:
    """From a log line one finds the trace."""
    with TracerProvider().get_tracer("test").start_as_current_span("work") as span:
        detail = create_error_detail_with_context(ErrorCode.TIMEOUT, "m", "svc", "op")
    context = span.get_span_context()
    assert detail.trace_id == f"{context.trace_id:032x}"
    assert detail.span_id == f"{context.span_id:016x}"


def test_a_span_that_nobody_records_is_not_pointed_to() -> None:
    """No error sends its reader to a trace that was never kept."""
    provider = TracerProvider(sampler=ALWAYS_OFF)
    with provider.get_tracer("test").start_as_current_span("work"):
        detail = create_error_detail_with_context(ErrorCode.TIMEOUT, "m", "svc", "op")
    assert (detail.trace_id, detail.span_id) == (None, None)


def test_the_exception_being_handled_is_the_stack_trace() -> None:
    """An error made while handling another keeps that one's traceback, causes included."""
    try:
        try:
            json.loads("{")
        except json.JSONDecodeError as error:
            raise RuntimeError("cannot read the settings") from error
    except RuntimeError:
        detail = create_error_detail_with_context(ErrorCode.CONFIGURATION_ERROR, "m", "svc", "op")
    assert detail.stack_trace is not None
    assert detail.stack_trace.startswith("Traceback")
    assert "JSONDecodeError" in detail.stack_trace
    assert detail.stack_trace.endswith("RuntimeError: cannot read the settings\n")


def test_without_an_exception_the_callers_stack_is_the_stack_trace() -> None:
    """An error made out of the blue shows who made it."""
    detail = create_error_detail_with_context(ErrorCode.TIMEOUT, "m", "svc", "op")
    assert detail.stack_trace is not None
    assert detail.stack_trace.splitlines()[-2].endswith(
        "in test_without_an_exception_the_callers_stack_is_the_stack_trace"
    )


def test_a_stack_trace_can_be_left_out() -> None:
    """Errors that happen all the time need not pay for a stack trace."""
    try:
        json.loads("{")
    except json.JSONDecodeError:
        detail = create_error_detail_with_context(
            ErrorCode.TIMEOUT, "m", "svc", "op", capture_stack=False
        )
    assert detail.stack_trace is None


@given(
    message=st.text(st.characters()),
    details=st.dictionaries(st.text(st.characters()), st.text(st.characters()) | st.floats()),
)
def test_any_text_can_be_logged_and_sent(message: str, details: dict[str, str | float]) -> None:
    """File names and foreign messages with broken characters do not break the error path."""
    detail = create_error_detail_with_context(
        ErrorCode.PARSING_ERROR, message, "svc", "op", details=details, capture_stack=False
    )
    assert json.loads(detail.model_dump_json())["details"].keys() == detail.details.keys()
    json.dumps(public_error_body(detail), allow_nan=False, ensure_ascii=False).encode()


def test_a_message_with_broken_characters_keeps_the_rest() -> None:
    """Only what cannot be encoded is replaced."""
    detail = create_error_detail_with_context(
        ErrorCode.PARSING_ERROR, "cannot read r\udce4knor.txt", "svc", "op"
    )
    assert detail.message == "cannot read r?knor.txt"
