"""What the OpenAPI document says of errors."""

from datetime import datetime
from typing import Any, Final
from uuid import UUID

from pydantic import BaseModel, JsonValue


class PublicError(BaseModel):
    """What went wrong. `code` is for programs, `message` for people."""

    code: str
    message: str
    correlation_id: UUID
    service: str
    timestamp: datetime
    details: JsonValue


class ErrorBody(BaseModel):
    """The body of every error."""

    error: PublicError


_DESCRIPTIONS: Final = {
    400: "VALIDATION_ERROR: parts of the request contradict each other, or its body is no UTF-8",
    401: "AUTHENTICATION_ERROR: no bearer token, or one that is not good now; `details.reason`",
    403: "AUTHORIZATION_ERROR: someone else's batch",
    404: "RESOURCE_NOT_FOUND",
    408: "TIMEOUT: the body did not come in time",
    413: "INVALID_REQUEST: the body is too large",
    422: "VALIDATION_ERROR: `details.validation_errors` says what is wrong where",
    429: "RATE_LIMIT: too many requests; `Retry-After` has the seconds to wait",
    500: "CONFIGURATION_ERROR or UNKNOWN_ERROR: the gateway is at fault",
    502: "EXTERNAL_SERVICE_ERROR: another service did not do its part",
    503: "KAFKA_PUBLISH_ERROR, CIRCUIT_BREAKER_OPEN or CONNECTION_ERROR: try again later",
    504: "TIMEOUT: another service did not answer in time",
}


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For FastAPI's `responses`, which are of this type."""
    return {
        status: {"model": ErrorBody, "description": _DESCRIPTIONS[status]} for status in statuses
    }
