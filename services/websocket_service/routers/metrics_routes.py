from dishka import FromDishka
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from quart import Blueprint, Response, request
from quart_dishka import inject

from huleedu_service_libs.error_handling import raise_service_unavailable
from huleedu_service_libs.error_handling.quart import extract_correlation_id
from services.websocket_service.config import Settings
from services.websocket_service.protocols import MetricsProtocol, MetricsUnavailableError

metrics_blueprint = Blueprint("metrics", __name__)


@metrics_blueprint.get("/metrics")
@inject
async def metrics(settings: FromDishka[Settings], metrics: FromDishka[MetricsProtocol]) -> Response:
    """Everything that is measured, in all workers, as Prometheus text."""
    try:
        page = await metrics.page()
    except MetricsUnavailableError as error:
        # Those of this worker alone would look as if counters had gone backwards.
        raise_service_unavailable(
            settings.SERVICE_NAME, "metrics", "workers", str(error), extract_correlation_id(request)
        )
    return Response(page, content_type=CONTENT_TYPE_PLAIN_0_0_4)
