import time
from datetime import UTC, datetime
from typing import Final, Literal

from dishka.integrations.fastapi import DishkaRoute, FromDishka
from fastapi import APIRouter
from pydantic import BaseModel

from services.api_gateway_service.config import SERVICE_NAME, Settings

router = APIRouter(tags=["Operation"], route_class=DishkaRoute)

_STARTED_AT: Final = time.monotonic()


class Health(BaseModel):
    """Alive; says nothing of what the gateway depends on."""

    service: str
    status: Literal["healthy"] = "healthy"
    message: str
    environment: str
    timestamp: datetime
    uptime_seconds: float


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", summary="Whether the process is alive")
async def healthz(settings: FromDishka[Settings]) -> Health:
    """Asks nobody else: a restart would not bring Kafka back."""
    return Health(
        service=SERVICE_NAME,
        message="The API gateway is alive",
        environment=settings.ENVIRONMENT,
        timestamp=datetime.now(UTC),
        uptime_seconds=round(time.monotonic() - _STARTED_AT, 3),
    )
