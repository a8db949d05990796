from dishka.integrations.fastapi import DishkaRoute, FromDishka
from fastapi import APIRouter, Response
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from services.api_gateway_service.metrics import GatewayMetrics

router = APIRouter(route_class=DishkaRoute)


@router.api_route("/metrics", methods=["GET", "HEAD"], include_in_schema=False)
async def metrics(metrics: FromDishka[GatewayMetrics]) -> Response:
    """Everything that is measured, as Prometheus text."""
    return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)
