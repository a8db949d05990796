"""Commands: what a client wants done with a batch."""

from typing import Annotated, Literal
from uuid import UUID

from dishka import FromDishka
from fastapi import APIRouter, Path, Request, Security
from pydantic import BaseModel, Field, StrictBool

from common_core.events.client_commands import ClientBatchPipelineRequestV1
from common_core.pipeline_models import PhaseName
from huleedu_service_libs.error_handling import raise_validation_error
from huleedu_service_libs.error_handling.fastapi import extract_correlation_id
from services.api_gateway_service.authentication import Caller
from services.api_gateway_service.batch_ids import BatchId
from services.api_gateway_service.config import SERVICE_NAME
from services.api_gateway_service.protocols import PipelineCommandsProtocol
from services.api_gateway_service.routers.error_responses import error_responses
from services.api_gateway_service.routers.guarded_route import GuardedRoute, bearer_scheme

router = APIRouter(
    prefix="/v1/batches",
    tags=["Batches"],
    route_class=GuardedRoute,
    dependencies=[Security(bearer_scheme)],
)


class PipelineRequest(BaseModel):
    """A `ClientBatchPipelineRequestV1` without what the gateway fills in itself.

    Other fields are ignored, `user_id` and `client_correlation_id` among them: the user is the
    token's, and the correlation id is the request's.
    """

    batch_id: BatchId
    requested_pipeline: PhaseName
    is_retry: StrictBool = False
    retry_reason: str | None = Field(default=None, max_length=2_000)


class PipelineAccepted(BaseModel):
    """The command is safe; what comes of it is told over the WebSocket."""

    status: Literal["accepted"] = "accepted"
    batch_id: str
    correlation_id: UUID


@router.post(
    "/{batch_id}/pipelines",
    status_code=202,
    summary="Take a batch through a pipeline",
    responses=error_responses(400, 401, 408, 413, 422, 429, 500, 503),
)
async def request_pipeline(
    request: Request,
    batch_id: Annotated[BatchId, Path()],
    body: PipelineRequest,
    caller: FromDishka[Caller],
    commands: FromDishka[PipelineCommandsProtocol],
) -> PipelineAccepted:
    """Hand the command on, and return once it is safe.

    After a 503 the command may be sent again. It may have got through all the same.
    """
    correlation_id = extract_correlation_id(request)
    if body.batch_id != batch_id:
        raise_validation_error(
            SERVICE_NAME,
            "request_pipeline",
            "batch_id",
            "The batch_id in the body is not the one in the path",
            correlation_id,
        )
    await commands.send(
        ClientBatchPipelineRequestV1(
            **body.model_dump(), client_correlation_id=correlation_id, user_id=caller.user_id
        )
    )
    return PipelineAccepted(batch_id=batch_id, correlation_id=correlation_id)
