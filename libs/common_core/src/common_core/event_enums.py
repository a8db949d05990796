"""Kafka events and the topics they are published to."""

from enum import StrEnum

__all__ = ["ProcessingEvent", "topic_name"]


class ProcessingEvent(StrEnum):
    """Events that cross services, by the name that `EventEnvelope.event_type` carries."""

    CLIENT_BATCH_PIPELINE_REQUEST = "client.batch.pipeline.request"
    TEACHER_NOTIFICATION_REQUESTED = "teacher.notification.requested"


_TOPICS: dict[ProcessingEvent, str] = {
    ProcessingEvent.CLIENT_BATCH_PIPELINE_REQUEST: "huleedu.commands.batch.pipeline.v1",
    ProcessingEvent.TEACHER_NOTIFICATION_REQUESTED: "huleedu.notification.teacher.requested.v1",
}


def topic_name(event: ProcessingEvent) -> str:
    """The Kafka topic of an event.

    Raises:
        ValueError: The event has no topic of its own; the message names it.
    """
    try:
        return _TOPICS[event]
    except KeyError:
        raise ValueError(f"Event {event.value!r} has no Kafka topic") from None
