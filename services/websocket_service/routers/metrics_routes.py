from dishka import FromDishka
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from quart import Blueprint, Response
from quart_dishka import inject

metrics_blueprint = Blueprint("metrics", __name__)


@metrics_blueprint.get("/metrics")
@inject
async def metrics(registry: FromDishka[CollectorRegistry]) -> Response:
    """Everything that is measured, as Prometheus text."""
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_PLAIN_0_0_4)
