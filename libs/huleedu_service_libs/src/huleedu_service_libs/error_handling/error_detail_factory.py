"""Filling in what an error's place of origin knows: time, trace, stack."""

import inspect
import sys
import traceback
from collections.abc import Mapping
from types import FrameType
from typing import Any, Final
from uuid import UUID, uuid4

from opentelemetry import trace

from common_core.error_enums import AnyErrorCode
from common_core.json_values import to_text
from common_core.models.error_models import ErrorDetail
from common_core.timestamps import utc_now

__all__ = ["create_error_detail_with_context"]

# Frames of these modules are how the error is reported, not where it comes from.
_REPORTING_MODULES: Final = frozenset({__name__, "huleedu_service_libs.error_handling.factories"})


def create_error_detail_with_context(
    error_code: AnyErrorCode,
    message: str,
    service: str,
    operation: str,
    correlation_id: UUID | None = None,
    details: Mapping[str, Any] | None = None,
    capture_stack: bool = True,  # noqa: FBT001, FBT002 - the contract fixes it
) -> ErrorDetail:
    """An `ErrorDetail` stamped with the current time and, if a span is recording, its ids.

    Without a correlation id a fresh one is made. `stack_trace` is the traceback of the exception
    being handled, if there is one, else the stack of the caller: for a `raise_*` factory, that is
    whoever called it.
    """
    trace_id, span_id = _recording_span_ids()
    return ErrorDetail(
        error_code=error_code,
        # Texts from file names or foreign exceptions may hold lone surrogates, which no log line,
        # span or response could carry.
        message=to_text(message),
        correlation_id=uuid4() if correlation_id is None else correlation_id,
        timestamp=utc_now(),
        service=service,
        operation=operation,
        details={to_text(key): value for key, value in (details or {}).items()},
        stack_trace=to_text(_stack_trace()) if capture_stack else None,
        trace_id=trace_id,
        span_id=span_id,
    )


def _recording_span_ids() -> tuple[str | None, str | None]:
    span = trace.get_current_span()
    if not span.is_recording():
        return None, None
    context = span.get_span_context()
    return trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id)


def _stack_trace() -> str:
    handled = sys.exception()
    if handled is not None:
        return "".join(traceback.format_exception(handled))
    return "".join(traceback.format_stack(_origin(inspect.currentframe())))


def _origin(frame: FrameType | None) -> FrameType | None:
    while frame is not None and frame.f_globals["__name__"] in _REPORTING_MODULES:
        frame = frame.f_back
    return frame
