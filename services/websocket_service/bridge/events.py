"""From the bytes of a record to the notification that a teacher is to see."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from pydantic import ValidationError

from common_core.events.envelope import EventEnvelope
from common_core.events.notification_events import TeacherNotificationRequestedV1
from huleedu_service_libs import strict_json
from huleedu_service_libs.event_utils import generate_deterministic_event_id
from huleedu_service_libs.notifications import MAX_KEY_BYTES, Notification
from services.websocket_service.bridge.poison import Poison, PoisonReason

# Of the model's fields, those that have another name in a notification.
_KEYS: Final = {"deadline_timestamp": "deadline"}


@dataclass(frozen=True, slots=True)
class TeacherEvent:
    """An event that has been read."""

    notification: Notification
    """Without a trace context: that is of the attempt to publish it."""
    correlation_id: str
    metadata: Mapping[str, Any] = field(repr=False)
    """Of the envelope: its trace context and whatever else somebody put there."""


def read_event(value: bytes | None) -> TeacherEvent | Poison:
    """What a record's value says, or why it can't be read.

    `event_type` has to be there and is not looked at: the topic says what its events are.
    """
    if value is None:
        return Poison(PoisonReason.TOMBSTONE, "the record has no value")
    try:
        fields = strict_json.loads(value)
    except ValueError as error:
        return Poison(PoisonReason.NOT_JSON, f"the value is no JSON: {error}")
    if not isinstance(fields, dict):
        return _invalid("the value is JSON, but no object")
    # Nothing depends on it but the trace, which is not worth an event.
    metadata = fields.pop("metadata", None)
    try:
        envelope = EventEnvelope[Any].model_validate(fields)
    except ValidationError as error:
        return _invalid(f"the envelope is not valid: {_problems(error)}")
    event = _event(envelope, metadata if isinstance(metadata, dict) else {})
    if isinstance(event, Poison) or "event_id" in fields:
        return event
    return _with_derived_key(event, value)


def _event(envelope: EventEnvelope[Any], metadata: Mapping[str, Any]) -> TeacherEvent | Poison:
    correlation_id = str(envelope.correlation_id)
    try:
        request = TeacherNotificationRequestedV1.model_validate(_without_nulls(envelope.data))
    except ValidationError as error:
        return _invalid(f"the envelope's data is not valid: {_problems(error)}", correlation_id)
    notification = Notification(
        user_id=request.teacher_id,
        event_type=request.notification_type,
        data=notification_data(request),
        idempotency_key=str(envelope.event_id),
        correlation_id=correlation_id,
        source_service=_publishable(envelope.source_service),
    )
    return TeacherEvent(notification, correlation_id, metadata)


def _without_nulls(data: Any) -> Any:
    """A field that is null counts as absent, whatever the model would say to it."""
    if not isinstance(data, dict):
        return data
    return {name: value for name, value in data.items() if value is not None}


def _with_derived_key(event: TeacherEvent, value: bytes) -> TeacherEvent | Poison:
    """The model makes up the id that is missing, another each time that the event is read."""
    try:
        key = generate_deterministic_event_id(value)
    except ValueError as error:
        return _invalid(
            f"the event has no id, and none can be derived: {error}", event.correlation_id
        )
    return replace(event, notification=replace(event.notification, idempotency_key=key))


def _invalid(detail: str, correlation_id: str | None = None) -> Poison:
    return Poison(PoisonReason.INVALID_EVENT, detail, correlation_id)


def notification_data(request: TeacherNotificationRequestedV1) -> dict[str, Any]:
    """The payload and the event's fields: those given win, for the others the payload may speak."""
    deadline = request.deadline_timestamp
    fields = {
        "category": request.category.value,
        "priority": request.priority.value,
        "action_required": request.action_required,
        "deadline": None if deadline is None else deadline.isoformat(),
        "batch_id": request.batch_id,
        "class_id": request.class_id,
        "correlation_id": request.correlation_id,
        "timestamp": request.timestamp.isoformat(),
    }
    given = {_KEYS.get(name, name) for name in request.model_fields_set}
    return {
        **fields,
        **request.payload,
        **{key: value for key, value in fields.items() if key in given},
    }


def _publishable(source_service: str) -> str | None:
    """The name of the event's service; None for one that no notification may carry."""
    return source_service if 0 < len(source_service.encode()) <= MAX_KEY_BYTES else None


def _problems(error: ValidationError) -> str:
    """Fields and kinds of problems, and nothing of what was given."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    # Of a place inside a payload only the field's name is ours.
    fields = ((problem["loc"][:1] or ("all of it",), problem["type"]) for problem in problems)
    return ", ".join(dict.fromkeys(f"{field} ({kind})" for (field,), kind in fields))
