"""Liveness, readiness, and what they rest on."""

import time
from datetime import UTC, datetime
from typing import Any, Final

from dishka import FromDishka
from quart import Blueprint, request
from quart_dishka import inject

from huleedu_service_libs.error_handling import raise_service_unavailable
from huleedu_service_libs.error_handling.quart import extract_correlation_id
from services.websocket_service.bridge.local_bridge import LocalBridge
from services.websocket_service.config import Settings
from services.websocket_service.hub import ConnectionHub
from services.websocket_service.protocols import (
    BackplaneHealthProtocol,
    BackplaneUnavailableError,
    JWTValidatorProtocol,
    MetricsProtocol,
    MetricsUnavailableError,
    RevocationsProtocol,
)

health_blueprint = Blueprint("health", __name__)

_READY: Final = {
    "redis": "ok",
    "draining": "no",
    "capacity": "ok",
    "token_key": "ok",
    "revocations": "ok",
}
_STARTED_AT = time.monotonic()


@health_blueprint.get("/healthz")
@inject
async def healthz(settings: FromDishka[Settings]) -> dict[str, Any]:
    """Alive; says nothing of what the service depends on."""
    return liveness(settings, "The WebSocket service is alive")


def liveness(settings: Settings, message: str) -> dict[str, Any]:
    """The body of an answer that says that the process is there."""
    return {
        "service": settings.SERVICE_NAME,
        "status": "healthy",
        "message": message,
        "environment": settings.ENVIRONMENT.value,
        "timestamp": datetime.now(UTC).isoformat(),
        "uptime_seconds": round(time.monotonic() - _STARTED_AT, 3),
    }


@health_blueprint.get("/readyz")
@inject
async def readyz(
    settings: FromDishka[Settings],
    hub: FromDishka[ConnectionHub],
    backplane: FromDishka[BackplaneHealthProtocol],
    validator: FromDishka[JWTValidatorProtocol],
    revocations: FromDishka[RevocationsProtocol],
    local_bridge: FromDishka[LocalBridge],
) -> tuple[dict[str, Any], int]:
    """Whether to send connections here, with a word on each thing that it rests on.

    Kafka is none of these: without it, connections are as good as ever.
    """
    hears = backplane.hears
    checks = {
        "redis": "ok" if hears else "not heard within the last seconds",
        "draining": "yes" if hub.draining else "no",
        "capacity": "full" if hub.full else "ok",
        "token_key": validator.problem or "ok",
        "revocations": "ok" if revocations.is_current else "not known at present",
    }
    ready = checks == _READY
    if local_bridge.kafka_check is not None:
        checks["kafka"] = local_bridge.kafka_check
    return {
        "service": settings.SERVICE_NAME,
        "status": "ready" if ready else "not_ready",
        "checks": checks,
    }, (200 if ready else 503)


@health_blueprint.get("/healthz/redis")
@inject
async def redis_health(
    settings: FromDishka[Settings], backplane: FromDishka[BackplaneHealthProtocol]
) -> dict[str, str]:
    """Whether Redis answers now; 503 with the error body where it does not."""
    try:
        await backplane.ping()
    except BackplaneUnavailableError:
        raise_service_unavailable(
            settings.SERVICE_NAME,
            "redis_health",
            "redis",
            "Redis does not answer",
            extract_correlation_id(request),
        )
    return {"service": "redis", "status": "healthy"}


@health_blueprint.get("/healthz/websocket")
@inject
async def websocket_health(
    settings: FromDishka[Settings], metrics: FromDishka[MetricsProtocol]
) -> dict[str, Any]:
    """How many connections there are, in all workers."""
    try:
        connections = await metrics.connections()
    except MetricsUnavailableError as error:
        raise_service_unavailable(
            settings.SERVICE_NAME,
            "websocket_health",
            "workers",
            str(error),
            extract_correlation_id(request),
        )
    return {
        "service": "websocket_manager",
        "status": "healthy",
        "total_connections": connections,
        "max_connections_per_user": settings.WEBSOCKET_MAX_CONNECTIONS_PER_USER,
    }
