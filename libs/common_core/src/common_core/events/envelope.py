"""The envelope that every Kafka event travels in."""

from typing import Any, Generic, TypeVar
from uuid import UUID, uuid4

from pydantic import BaseModel, Field

from common_core.timestamps import UtcDatetime, utc_now

__all__ = ["EventEnvelope"]

_Data = TypeVar("_Data")


class EventEnvelope(BaseModel, Generic[_Data]):
    """Who says what, when, and as part of which request.

    A consumer reads in two phases, because the type of `data` is only known once `event_type` is:
    `EventEnvelope[Any].model_validate_json(raw)` first, then the data's model on `.data`. Fields
    that this version does not know are ignored, so that a publisher may be newer than its readers.
    """

    event_id: UUID = Field(default_factory=uuid4)
    event_type: str
    event_timestamp: UtcDatetime = Field(default_factory=utc_now)
    source_service: str
    schema_version: int = 1
    correlation_id: UUID = Field(default_factory=uuid4)
    data_schema_uri: str | None = None
    data: _Data
    metadata: dict[str, Any] | None = Field(
        default=None, description="Trace context (W3C `traceparent`, `tracestate`) and the like"
    )
