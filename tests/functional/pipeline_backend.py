"""A backend as others write it: takes pipeline commands from Kafka, and has the teacher told.

`python -m tests.functional.pipeline_backend KAFKA REDIS_URL` prints `ready` once commands come, and
ends with SIGTERM. It refuses a retry that gives no reason.
"""

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Final
from uuid import uuid5

from aiokafka import AIOKafkaConsumer, ConsumerRecord

from common_core.event_enums import ProcessingEvent, topic_name
from common_core.events.client_commands import ClientBatchPipelineRequestV1
from common_core.events.envelope import EventEnvelope
from common_core.events.notification_events import TeacherNotificationRequestedV1
from common_core.websocket_enums import NotificationPriority, WebSocketEventCategory
from huleedu_service_libs.idempotency_v2 import IdempotencyConfig, idempotent_consumer
from huleedu_service_libs.kafka_client import KafkaBus
from huleedu_service_libs.observability import (
    get_tracer,
    init_tracing,
    trace_operation,
    use_trace_context,
)
from huleedu_service_libs.protocols import KafkaPublisherProtocol
from huleedu_service_libs.redis_client import RedisClient

SERVICE: Final = "batch_orchestrator_service"
STARTED: Final = "batch_processing_started"
COMPLETED: Final = "batch_pipeline_completed"
REFUSED: Final = "batch_validation_failed"
RUN_PIPELINE: Final = "backend.run_pipeline"


async def run_pipeline(
    record: ConsumerRecord[bytes, bytes],
    bus: KafkaPublisherProtocol,
    *,
    confirm_idempotency: Callable[[], Awaitable[None]],
) -> None:
    """Tell the teacher that the batch is processed, and that it has been; or why it is not."""
    envelope = EventEnvelope[ClientBatchPipelineRequestV1].model_validate_json(record.value or b"")
    command = envelope.data
    is_refused = command.is_retry and command.retry_reason is None
    with use_trace_context(envelope.metadata), trace_operation(get_tracer(SERVICE), RUN_PIPELINE):
        for notification_type in (REFUSED,) if is_refused else (STARTED, COMPLETED):
            await bus.publish(
                topic_name(ProcessingEvent.TEACHER_NOTIFICATION_REQUESTED),
                EventEnvelope(
                    # The same for a command that comes again.
                    event_id=uuid5(envelope.event_id, notification_type),
                    event_type=ProcessingEvent.TEACHER_NOTIFICATION_REQUESTED,
                    source_service=SERVICE,
                    correlation_id=envelope.correlation_id,
                    data=TeacherNotificationRequestedV1(
                        teacher_id=command.user_id,
                        notification_type=notification_type,
                        category=WebSocketEventCategory.BATCH_PROGRESS,
                        priority=NotificationPriority.STANDARD,
                        payload={"requested_pipeline": command.requested_pipeline},
                        action_required=is_refused,
                        correlation_id=str(envelope.correlation_id),
                        batch_id=command.batch_id,
                    ),
                ),
                key=command.user_id,
            )
    await confirm_idempotency()


async def main(bootstrap_servers: str, redis_url: str) -> None:
    """Take commands until SIGTERM."""
    init_tracing(SERVICE)
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with (
        RedisClient(client_id=SERVICE, redis_url=redis_url) as redis,
        KafkaBus(client_id=SERVICE, bootstrap_servers=bootstrap_servers) as bus,
        AIOKafkaConsumer(
            topic_name(ProcessingEvent.CLIENT_BATCH_PIPELINE_REQUEST),
            bootstrap_servers=bootstrap_servers,
            group_id=SERVICE,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
        ) as commands,
    ):
        handle = idempotent_consumer(redis, IdempotencyConfig(service_name=SERVICE))(run_pipeline)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        async for record in commands:
            await handle(record, bus)
            await commands.commit()


if __name__ == "__main__":
    try:
        asyncio.run(main(*sys.argv[1:]))
    except asyncio.CancelledError:
        sys.exit(0)
