"""The error model that services pass around and from which every public error body is made."""

from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_serializer

from common_core.error_enums import AnyErrorCode
from common_core.json_values import to_json_value
from common_core.timestamps import UtcDatetime

__all__ = ["ErrorDetail"]


class ErrorDetail(BaseModel):
    """One failure: what, where, when, and for which request.

    For logs and between services. `stack_trace` must never reach a client, so a client is not sent
    this model but the public error body made from it.

    `details` may hold values of any type; in JSON those that JSON does not know are text.
    """

    model_config = ConfigDict(frozen=True)

    error_code: AnyErrorCode
    message: str
    correlation_id: UUID
    timestamp: UtcDatetime
    service: str
    operation: str
    details: dict[str, Any] = Field(default_factory=dict)
    stack_trace: str | None = None
    trace_id: str | None = Field(default=None, description="32 hex digits")
    span_id: str | None = Field(default=None, description="16 hex digits")

    @field_serializer("details", when_used="json")
    def _details_as_json(self, details: dict[str, Any]) -> JsonValue:
        return to_json_value(details)
