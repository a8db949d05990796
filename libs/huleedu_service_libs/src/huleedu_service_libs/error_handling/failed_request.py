"""What a request that failed becomes, whatever the web framework: error, response and log line.

- The body is `PublicErrorBody`, and the response's `X-Correlation-ID` is the id in the body.
- Causes and tracebacks go to the log only, and only defects of ours have a traceback there.
- The text of a validation error quotes the input, so that neither body nor log has it.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.client import responses
from typing import Any, Final, Self
from uuid import UUID

import structlog
from opentelemetry import trace

from common_core.error_enums import ErrorCode
from common_core.json_values import to_text
from common_core.models.error_models import ErrorDetail
from huleedu_service_libs.error_handling.correlation import CORRELATION_ID_HEADER
from huleedu_service_libs.error_handling.error_detail_factory import (
    create_error_detail_with_context,
)
from huleedu_service_libs.error_handling.http_status import (
    ERROR_CODE_TO_HTTP_STATUS,
    error_code_for_http_status,
)
from huleedu_service_libs.error_handling.public_error import (
    public_error_body,
    public_validation_errors,
)

__all__ = ["ErrorResponse", "FailedRequest", "log_failure", "log_unexpected"]

# Of the body that a framework's own error would have had, or of ours.
_REPLACED_HEADERS: Final = frozenset(
    {"content-length", "content-type", CORRELATION_ID_HEADER.lower()}
)


@dataclass(frozen=True, slots=True)
class FailedRequest:
    """The request that an error without an `ErrorDetail` of its own belongs to."""

    service: str
    operation: str
    correlation_id: UUID

    def http_error(
        self, status: int, message: str | None = None, details: Mapping[str, object] | None = None
    ) -> ErrorDetail:
        """For an HTTP error that the framework, or a view by the framework's means, has raised.

        Without a message it has the status's name: frameworks word their own each in its own way.
        """
        return self._detail(
            error_code_for_http_status(status), message or _status_name(status), details
        )

    def validation_error(self, errors: Iterable[Mapping[str, Any]]) -> ErrorDetail:
        """For pydantic's errors, as `ValidationError.errors()` lists them."""
        problems = public_validation_errors(errors)
        message = problems[0]["message"] if problems else "Input is not valid"
        return self._detail(ErrorCode.VALIDATION_ERROR, message, {"validation_errors": problems})

    def unexpected_error(self, error: BaseException) -> ErrorDetail:
        """For an exception that nobody foresaw: it shows its class and nothing else."""
        return self._detail(
            ErrorCode.UNKNOWN_ERROR,
            "An unexpected error occurred",
            {"error_type": type(error).__name__},
        )

    def _detail(
        self, error_code: ErrorCode, message: str, details: Mapping[str, object] | None
    ) -> ErrorDetail:
        return create_error_detail_with_context(
            error_code,
            to_text(message),
            service=self.service,
            operation=self.operation,
            correlation_id=self.correlation_id,
            details=details,
            capture_stack=False,
        )


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """A response before it is one of a framework: `body` is JSON."""

    status: int
    headers: list[tuple[str, str]]
    body: str
    content_type: str = "application/json"

    @classmethod
    def of(
        cls,
        error_detail: ErrorDetail,
        status: int | None = None,
        headers: Iterable[tuple[str, str]] = (),
    ) -> Self:
        """The response to an error, with its code's own status unless another one is given.

        Of the headers that the framework's error had, those that describe its body are left out.
        """
        return cls(
            status=ERROR_CODE_TO_HTTP_STATUS[error_detail.error_code] if status is None else status,
            headers=[
                (CORRELATION_ID_HEADER, str(error_detail.correlation_id)),
                *(
                    (name, value)
                    for name, value in headers
                    if name.lower() not in _REPLACED_HEADERS
                ),
            ],
            body=json.dumps(public_error_body(error_detail), allow_nan=False),
        )


def log_failure(error_detail: ErrorDetail, status: int, **context: object) -> None:
    """The one line about a request that failed in a way that was foreseen."""
    log = structlog.get_logger(__name__)
    # Below 500 it is the caller's doing: worth a line, not somebody's attention.
    write = log.error if status >= HTTPStatus.INTERNAL_SERVER_ERROR else log.info
    write(
        "request failed",
        error_code=error_detail.error_code.value,
        status=status,
        message=error_detail.message,
        service=error_detail.service,
        operation=error_detail.operation,
        correlation_id=str(error_detail.correlation_id),
        **context,
    )


def log_unexpected(error_detail: ErrorDetail, error: BaseException) -> None:
    """The one line about a defect of ours, with its traceback; the span has the exception, too."""
    # The tracing middleware only sees the response that this becomes.
    trace.get_current_span().record_exception(error)
    structlog.get_logger(__name__).error(
        "unexpected exception",
        correlation_id=str(error_detail.correlation_id),
        service=error_detail.service,
        operation=error_detail.operation,
        exc_info=error,
    )


def _status_name(status: int) -> str:
    # As RFC 9110 has it; before Python 3.13 it has an older name there.
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return "Content Too Large"
    return responses.get(status, "HTTP error")
