from typing import Final

from aiokafka.errors import KafkaError
from opentelemetry.trace import Tracer

from common_core.event_enums import ProcessingEvent, topic_name
from common_core.events.client_commands import ClientBatchPipelineRequestV1
from common_core.events.envelope import EventEnvelope
from huleedu_service_libs.error_handling import raise_kafka_publish_error
from huleedu_service_libs.logging_utils import create_service_logger
from huleedu_service_libs.observability import trace_operation
from huleedu_service_libs.protocols import KafkaPublisherProtocol
from services.api_gateway_service.config import SERVICE_NAME
from services.api_gateway_service.metrics import GatewayMetrics

logger = create_service_logger(__name__)

_EVENT: Final = ProcessingEvent.CLIENT_BATCH_PIPELINE_REQUEST
_TOPIC: Final = topic_name(_EVENT)


class KafkaPipelineCommands:
    """Publishes commands; those of one batch share its key, and so their partition."""

    def __init__(
        self, publisher: KafkaPublisherProtocol, tracer: Tracer, metrics: GatewayMetrics
    ) -> None:
        self._publisher = publisher
        self._tracer = tracer
        self._published = metrics.events_published

    async def send(self, command: ClientBatchPipelineRequestV1) -> None:
        envelope = EventEnvelope[ClientBatchPipelineRequestV1](
            event_type=_EVENT.value,
            source_service=SERVICE_NAME,
            correlation_id=command.client_correlation_id,
            data=command,
        )
        attributes = {
            "batch_id": command.batch_id,
            "requested_pipeline": command.requested_pipeline.value,
            "messaging.destination.name": _TOPIC,
        }
        with trace_operation(self._tracer, "gateway.publish_command", attributes):
            try:
                await self._publisher.publish(_TOPIC, envelope, key=command.batch_id)
            except KafkaError as error:
                self._published.labels(_TOPIC, "failure").inc()
                # Not for the caller: it names addresses.
                logger.error(  # noqa: TRY400 - the traceback is that of a library's timer
                    "command not published", topic=_TOPIC, reason=repr(error)
                )
                raise_kafka_publish_error(
                    SERVICE_NAME,
                    "publish_command",
                    _TOPIC,
                    "The command was not confirmed as handed on: send it again later",
                    command.client_correlation_id,
                )
        self._published.labels(_TOPIC, "success").inc()
        logger.info(
            "command published",
            batch_id=command.batch_id,
            requested_pipeline=command.requested_pipeline.value,
            event_id=str(envelope.event_id),
        )
