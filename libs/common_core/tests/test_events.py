from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import ValidationError

from common_core import event_enums
from common_core.event_enums import ProcessingEvent, topic_name
from common_core.events.client_commands import ClientBatchPipelineRequestV1
from common_core.events.envelope import EventEnvelope
from common_core.events.notification_events import TeacherNotificationRequestedV1
from common_core.pipeline_models import PhaseName
from common_core.websocket_enums import NotificationPriority, WebSocketEventCategory

NOTIFICATION: dict[str, Any] = {
    "teacher_id": "teacher-7",
    "notification_type": "batch_results_ready",
    "category": "processing_results",
    "priority": "high",
    "payload": {"batch_id": "b-1", "essay_count": 28},
    "correlation_id": "c-1",
}


def test_an_event_is_read_in_two_phases() -> None:
    """A consumer can look at the envelope before it knows what is inside."""
    sent = EventEnvelope[TeacherNotificationRequestedV1](
        event_type=ProcessingEvent.TEACHER_NOTIFICATION_REQUESTED,
        source_service="result_aggregator_service",
        data=TeacherNotificationRequestedV1.model_validate(NOTIFICATION),
        metadata={"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
    )

    envelope = EventEnvelope[Any].model_validate_json(sent.model_dump_json())
    assert envelope.event_type == "teacher.notification.requested"
    assert isinstance(envelope.data, dict)
    assert TeacherNotificationRequestedV1.model_validate(envelope.data) == sent.data
    assert envelope.model_dump(exclude={"data"}) == sent.model_dump(exclude={"data"})


def test_an_envelope_without_a_declared_type_carries_its_data_whole() -> None:
    """A publisher that does not name the data's type loses none of its fields."""
    data = TeacherNotificationRequestedV1.model_validate(NOTIFICATION)
    envelope: EventEnvelope[Any] = EventEnvelope(event_type="x", source_service="y", data=data)
    assert EventEnvelope[Any].model_validate_json(
        envelope.model_dump_json()
    ).data == data.model_dump(mode="json")


def test_every_envelope_has_its_own_identity_and_time() -> None:
    """Two events are never taken for one another."""
    before = datetime.now(UTC)
    first, second = (
        EventEnvelope[Any](event_type="x", source_service="y", data={}) for _ in range(2)
    )
    assert first.event_id != second.event_id
    assert first.correlation_id != second.correlation_id
    assert before <= first.event_timestamp <= second.event_timestamp <= datetime.now(UTC)
    assert first.event_timestamp.utcoffset() == timedelta(0)
    assert (first.schema_version, first.data_schema_uri, first.metadata) == (1, None, None)


def test_fields_of_a_newer_publisher_are_ignored() -> None:
    """A service can be deployed before its consumers are."""
    raw = '{"event_type": "x", "source_service": "y", "data": 1, "shard": 3}'
    assert EventEnvelope[Any].model_validate_json(raw).data == 1


@pytest.mark.parametrize("missing", ["event_type", "source_service", "data"])
def test_an_incomplete_envelope_is_refused(missing: str) -> None:
    """An event that does not say what it is, whose it is or what it holds is not an event."""
    fields = {"event_type": "x", "source_service": "y", "data": {}}
    del fields[missing]
    with pytest.raises(ValidationError, match=missing):
        EventEnvelope[Any].model_validate(fields)


@pytest.mark.parametrize(
    ("event", "name", "topic"),
    [
        (
            ProcessingEvent.CLIENT_BATCH_PIPELINE_REQUEST,
            "client.batch.pipeline.request",
            "huleedu.commands.batch.pipeline.v1",
        ),
        (
            ProcessingEvent.TEACHER_NOTIFICATION_REQUESTED,
            "teacher.notification.requested",
            "huleedu.notification.teacher.requested.v1",
        ),
    ],
)
def test_events_go_to_their_topics(event: ProcessingEvent, name: str, topic: str) -> None:
    """Publishers and consumers meet on the same topic."""
    assert event == name
    assert topic_name(event) == topic


def test_an_event_without_a_topic_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Publishing an event that has no topic says which event it was."""
    monkeypatch.setattr(event_enums, "_TOPICS", {})
    with pytest.raises(ValueError, match=r"teacher\.notification\.requested"):
        topic_name(ProcessingEvent.TEACHER_NOTIFICATION_REQUESTED)


def test_every_event_has_a_topic() -> None:
    """No event that can be named is impossible to publish."""
    assert len({topic_name(event) for event in ProcessingEvent}) == len(ProcessingEvent)


def test_a_notification_names_its_kind_and_urgency() -> None:
    """A frontend can sort notifications without knowing each type."""
    notification = TeacherNotificationRequestedV1.model_validate(NOTIFICATION)
    assert notification.category is WebSocketEventCategory.PROCESSING_RESULTS
    assert notification.priority is NotificationPriority.HIGH
    assert notification.timestamp.utcoffset() == timedelta(0)
    assert not notification.action_required
    assert notification.deadline_timestamp is None
    assert notification.batch_id is None
    assert notification.class_id is None


@pytest.mark.parametrize(
    "wrong",
    [{"category": "gossip"}, {"priority": "asap"}, {"teacher_id": ""}, {"payload": "text"}],
)
def test_a_malformed_notification_is_refused(wrong: dict[str, str]) -> None:
    """What cannot be delivered or sorted is refused where it is made."""
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        TeacherNotificationRequestedV1.model_validate(NOTIFICATION | wrong)


def test_a_pipeline_request_gets_a_correlation_id() -> None:
    """A client that sends no correlation id can still be told which request was meant."""
    request = ClientBatchPipelineRequestV1.model_validate(
        {"batch_id": "b-1", "requested_pipeline": "ai_feedback", "user_id": "teacher-7"}
    )
    assert isinstance(request.client_correlation_id, UUID)
    assert request.requested_pipeline is PhaseName.AI_FEEDBACK
    assert (request.is_retry, request.retry_reason) == (False, None)


def test_a_pipeline_request_survives_json() -> None:
    """The gateway's command arrives as it was sent."""
    request = ClientBatchPipelineRequestV1(
        batch_id="b-1",
        requested_pipeline=PhaseName.CJ_ASSESSMENT,
        client_correlation_id=uuid4(),
        user_id="teacher-7",
        is_retry=True,
        retry_reason="the essays were incomplete",
    )
    assert ClientBatchPipelineRequestV1.model_validate_json(request.model_dump_json()) == request


def test_an_unknown_pipeline_is_refused() -> None:
    """A typing error in a pipeline's name is caught at the door."""
    with pytest.raises(ValidationError, match="requested_pipeline"):
        ClientBatchPipelineRequestV1.model_validate(
            {"batch_id": "b-1", "requested_pipeline": "spelchek", "user_id": "teacher-7"}
        )
