"""Where WebSockets were until they got a service of their own."""

from http import HTTPMethod, HTTPStatus
from typing import Final

from fastapi import APIRouter, Request, Response

from common_core.error_enums import ErrorCode
from huleedu_service_libs.error_handling import create_error_detail_with_context
from huleedu_service_libs.error_handling.fastapi import (
    create_error_response,
    extract_correlation_id,
)
from services.api_gateway_service.config import SERVICE_NAME

router = APIRouter()

MIGRATION_GUIDE: Final = "services/websocket_service/MIGRATION.md"
NEW_ENDPOINT: Final = "/ws"


@router.api_route(
    "/ws/v1/status/{client_id}",
    methods=[method.value for method in HTTPMethod],
    include_in_schema=False,
)
async def websocket_status(request: Request) -> Response:
    """410, whoever asks: old clients come with an upgrade, and with a token where none belongs."""
    detail = create_error_detail_with_context(
        ErrorCode.RESOURCE_NOT_FOUND,
        "WebSockets have moved to a service of their own: connect to its /ws, as the migration "
        "guide says",
        SERVICE_NAME,
        "websocket_status",
        extract_correlation_id(request),
        details={"migration_guide": MIGRATION_GUIDE, "new_endpoint": NEW_ENDPOINT},
        capture_stack=False,
    )
    return create_error_response(detail, HTTPStatus.GONE)
