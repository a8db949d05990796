"""How far a batch is."""

from typing import Annotated

from dishka import FromDishka
from fastapi import APIRouter, Path, Request, Security
from pydantic import BaseModel, JsonValue

from common_core.error_enums import ErrorCode
from huleedu_service_libs.error_handling import HuleEduError
from huleedu_service_libs.error_handling.fastapi import extract_correlation_id
from services.api_gateway_service.authentication import Caller
from services.api_gateway_service.batch_ids import BatchId
from services.api_gateway_service.protocols import BatchStatusProtocol
from services.api_gateway_service.response_headers import add_response_headers
from services.api_gateway_service.routers.error_responses import error_responses
from services.api_gateway_service.routers.guarded_route import GuardedRoute, bearer_scheme
from services.api_gateway_service.status_mapping import PublicStatus

router = APIRouter(
    prefix="/v1/batches",
    tags=["Batches"],
    route_class=GuardedRoute,
    dependencies=[Security(bearer_scheme)],
)


class BatchStatusBody(BaseModel):
    """`details` is what the result aggregator knows of the batch, without anybody's `user_id`."""

    status: PublicStatus
    details: dict[str, JsonValue]


@router.get(
    "/{batch_id}/status",
    summary="How far a batch is",
    responses=error_responses(401, 403, 404, 408, 413, 422, 429, 500, 502, 503, 504),
)
async def batch_status(
    request: Request,
    batch_id: Annotated[BatchId, Path()],
    caller: FromDishka[Caller],
    batches: FromDishka[BatchStatusProtocol],
) -> BatchStatusBody:
    """Ask for one of the caller's own batches.

    After a 503 with CIRCUIT_BREAKER_OPEN, `Retry-After` has the seconds until it may go better.
    """
    try:
        found = await batches.status(
            batch_id, user_id=caller.user_id, correlation_id=extract_correlation_id(request)
        )
    except HuleEduError as error:
        detail = error.error_detail
        if detail.error_code is ErrorCode.CIRCUIT_BREAKER_OPEN:
            retry_after_s = str(detail.details["retry_after_seconds"])
            add_response_headers(request.scope, {"Retry-After": retry_after_s})
        raise
    return BatchStatusBody(status=found.status, details=found.details)
