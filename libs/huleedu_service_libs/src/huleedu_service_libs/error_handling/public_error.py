"""What callers get to see of an error: the same object in HTTP responses and WebSocket frames."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, TypedDict, get_args

from pydantic import JsonValue
from pydantic_core.core_schema import ErrorType

from common_core.json_values import to_json_value, to_text
from common_core.models.error_models import ErrorDetail

__all__ = [
    "PublicError",
    "PublicErrorBody",
    "PublicValidationError",
    "public_error_body",
    "public_validation_errors",
]

# Pydantic's own messages name what was expected. These quote what was sent, or whatever a validator
# put into its exception, and `int()` or `UUID()` put the input there.
_CONSTANT_MESSAGES: Final = frozenset(get_args(ErrorType)) - {
    "assertion_error",
    "union_tag_invalid",
    "value_error",
}
# Shorter texts turn up in any sentence by chance, and nothing that short can be kept secret.
_MIN_SECRET_LENGTH: Final = 4
_PROBE_LENGTH: Final = 32


class PublicError(TypedDict):
    """`timestamp` is ISO 8601 in UTC."""

    code: str
    message: str
    correlation_id: str
    service: str
    timestamp: str
    details: JsonValue


class PublicErrorBody(TypedDict):
    """The whole body of an error response."""

    error: PublicError


class PublicValidationError(TypedDict):
    """One thing that is wrong with what a caller sent; `location` is the path to it."""

    location: list[str | int]
    message: str
    type: str


def public_error_body(error_detail: ErrorDetail) -> PublicErrorBody:
    """The body for an error: always encodable as JSON, never with a stack trace in it."""
    return {
        "error": {
            "code": error_detail.error_code.value,
            "message": to_text(error_detail.message),
            "correlation_id": str(error_detail.correlation_id),
            "service": to_text(error_detail.service),
            "timestamp": error_detail.timestamp.isoformat(),
            "details": to_json_value(error_detail.details),
        }
    }


def public_validation_errors(errors: Iterable[Mapping[str, Any]]) -> list[PublicValidationError]:
    """Pydantic's errors (as `ValidationError.errors()` lists them) without what was sent.

    Input is left out, and so is a message that quotes it: it may be a password.
    """
    return [
        {
            "location": [part if isinstance(part, int) else to_text(part) for part in error["loc"]],
            "message": _message_without_input(error),
            "type": error["type"],
        }
        for error in errors
    ]


def _message_without_input(error: Mapping[str, Any]) -> str:
    message = to_text(error["msg"])
    if error["type"] in _CONSTANT_MESSAGES:
        return message
    for text in _texts(to_json_value(error.get("input"))):
        # The beginning will do: int() and others cut what they quote.
        quotes = text[:_PROBE_LENGTH], repr(text)[1:-1][:_PROBE_LENGTH]
        if len(text) >= _MIN_SECRET_LENGTH and any(quote in message for quote in quotes):
            return "Input is not valid"
    return message


def _texts(value: JsonValue) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _texts(item)
    else:
        yield to_text(value)
