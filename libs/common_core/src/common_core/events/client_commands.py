"""Commands that a client gives through the API gateway."""

from uuid import UUID, uuid4

from pydantic import BaseModel, Field

from common_core.pipeline_models import PhaseName

__all__ = ["ClientBatchPipelineRequestV1"]


class ClientBatchPipelineRequestV1(BaseModel):
    """A teacher asks for a batch to be taken through a pipeline up to the given phase."""

    batch_id: str = Field(min_length=1)
    requested_pipeline: PhaseName
    client_correlation_id: UUID = Field(default_factory=uuid4)
    user_id: str = Field(min_length=1)
    is_retry: bool = False
    retry_reason: str | None = None
