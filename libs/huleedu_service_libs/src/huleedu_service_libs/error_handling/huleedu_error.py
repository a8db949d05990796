"""The one exception that services raise across their boundaries."""

from collections.abc import Mapping
from typing import Any, Self

from opentelemetry import trace
from opentelemetry.trace import Status, StatusCode

from common_core.json_values import fits_64_bits, to_text
from common_core.models.error_models import ErrorDetail

__all__ = ["HuleEduError"]


class HuleEduError(Exception):
    """An error with an `ErrorDetail`, which says everything about it.

    Creating one while a span is recording marks the span as failed: the exception is recorded,
    and the detail's fields become attributes. Pickling and copying keep the detail.
    """

    def __init__(self, error_detail: ErrorDetail) -> None:
        super().__init__(error_detail)
        self.error_detail = error_detail
        _mark_current_span(self)

    @property
    def correlation_id(self) -> str:
        """The id of the request that failed, in the UUID's canonical form."""
        return str(self.error_detail.correlation_id)

    @property
    def error_code(self) -> str:
        """The code's value, whichever enum it belongs to."""
        return self.error_detail.error_code.value

    @property
    def service(self) -> str:
        """The service that the failure belongs to."""
        return self.error_detail.service

    @property
    def operation(self) -> str:
        """What the service was doing."""
        return self.error_detail.operation

    def to_dict(self) -> dict[str, Any]:
        """`{"error": "[CODE] message", "error_detail": {...}}`, for logs.

        Values keep their Python types, and the stack trace is in it: this is not for clients.
        """
        return {"error": str(self), "error_detail": self.error_detail.model_dump()}

    def add_detail(self, key: str, value: Any) -> Self:
        """The same error with one more detail, or another value for it; this one stays as it is.

        Traceback and cause go along, so that raising the new error in an `except` block of the old
        one loses nothing.
        """
        details = {**self.error_detail.details, key: value}
        extended = type(self)(self.error_detail.model_copy(update={"details": details}))
        extended.__cause__ = self.__cause__
        extended.__context__ = self.__context__
        extended.__suppress_context__ = self.__suppress_context__
        return extended.with_traceback(self.__traceback__)

    def __str__(self) -> str:
        return f"[{self.error_code}] {self.error_detail.message}"

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(error_code={self.error_code!r}, "
            f"message={self.error_detail.message!r}, service={self.service!r}, "
            f"operation={self.operation!r}, correlation_id={self.correlation_id!r})"
        )


def _mark_current_span(error: HuleEduError) -> None:
    span = trace.get_current_span()
    if not span.is_recording():
        return
    detail = error.error_detail
    span.record_exception(error)
    span.set_status(Status(StatusCode.ERROR, detail.message))
    span.set_attributes(
        {
            "error": True,
            "error.code": error.error_code,
            "error.message": detail.message,
            "error.service": detail.service,
            "error.operation": detail.operation,
            "correlation_id": error.correlation_id,
            **_detail_attributes(detail.details),
        }
    )


def _detail_attributes(details: Mapping[str, Any]) -> dict[str, str | int | float]:
    return {f"error.details.{key}": _attribute(value) for key, value in details.items()}


def _attribute(value: object) -> str | int | float:
    match value:
        case bool() | float():
            return value
        # One larger integer makes the OTLP exporter drop the whole batch of spans.
        case int() if fits_64_bits(value):
            return value
        case _:
            return to_text(value)
