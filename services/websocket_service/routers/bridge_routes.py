"""Probes and metrics of a process that is a bridge and nothing else."""

from typing import Any

from dishka import FromDishka
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from quart import Blueprint, Response
from quart_dishka import inject

from services.websocket_service.bridge.local_bridge import LocalBridge
from services.websocket_service.config import Settings
from services.websocket_service.protocols import BackplaneHealthProtocol
from services.websocket_service.routers.health_routes import liveness

bridge_blueprint = Blueprint("bridge", __name__)


@bridge_blueprint.get("/healthz")
@inject
async def healthz(settings: FromDishka[Settings]) -> dict[str, Any]:
    """Alive; says nothing of what the bridge depends on."""
    return liveness(settings, "The Kafka bridge is alive")


@bridge_blueprint.get("/readyz")
@inject
async def readyz(
    settings: FromDishka[Settings],
    backplane: FromDishka[BackplaneHealthProtocol],
    local_bridge: FromDishka[LocalBridge],
) -> tuple[dict[str, Any], int]:
    """Whether events can pass, with a word on both ends."""
    checks = {
        "redis": "ok" if backplane.hears else "not heard within the last seconds",
        "kafka": local_bridge.kafka_check,
    }
    ready = set(checks.values()) == {"ok"}
    return {
        "service": settings.SERVICE_NAME,
        "status": "ready" if ready else "not_ready",
        "checks": checks,
    }, (200 if ready else 503)


@bridge_blueprint.get("/metrics")
@inject
async def metrics(registry: FromDishka[CollectorRegistry]) -> Response:
    """What is measured in this process, as Prometheus text."""
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_PLAIN_0_0_4)
