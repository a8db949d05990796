"""Records on the topic, and the notifications that they become."""

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common_core.websocket_enums import NotificationPriority, WebSocketEventCategory
from services.websocket_service.bridge.events import TeacherEvent, read_event
from services.websocket_service.bridge.poison import Poison, PoisonReason

EVENT_ID = "12345678-1234-4234-8234-123456789abc"
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=10,
)
MOMENTS = st.datetimes(timezones=st.just(UTC))
FIELDS = ("category", "priority", "action_required", "correlation_id", "timestamp")


def envelope(**changes: Any) -> dict[str, Any]:
    """A good one, save for `changes`; `data` changes single fields of the event."""
    data = {
        "teacher_id": "teacher-1",
        "notification_type": "batch_results_ready",
        "category": "batch_progress",
        "priority": "high",
        "payload": {},
        "correlation_id": "correlation-1",
        **changes.pop("data", {}),
    }
    return {
        "event_id": EVENT_ID,
        "event_type": "teacher.notification.requested",
        "source_service": "result_service",
        "correlation_id": str(UUID(int=1)),
        "data": data,
        **changes,
    }


def read(**changes: Any) -> TeacherEvent | Poison:
    return read_event(json.dumps(envelope(**changes)).encode())


def good(**changes: Any) -> TeacherEvent:
    event = read(**changes)
    assert isinstance(event, TeacherEvent)
    return event


@settings(deadline=None)
@given(
    payload=st.dictionaries(TEXT | st.sampled_from([*FIELDS, "deadline", "batch_id"]), JSON),
    category=st.sampled_from(WebSocketEventCategory),
    priority=st.sampled_from(NotificationPriority),
    action_required=st.booleans(),
    deadline=st.none() | MOMENTS,
    batch_id=st.none() | TEXT,
    class_id=st.none() | TEXT,
    timestamp=MOMENTS,
)
def test_data_is_the_payload_with_the_fields_of_the_event(
    payload: dict[str, Any],
    category: WebSocketEventCategory,
    priority: NotificationPriority,
    *,
    action_required: bool,
    deadline: datetime | None,
    batch_id: str | None,
    class_id: str | None,
    timestamp: datetime,
) -> None:
    """All of the payload is shown, and what the event says itself wins unless it is null."""
    event = good(
        data={
            "payload": payload,
            "category": category.value,
            "priority": priority.value,
            "action_required": action_required,
            "deadline_timestamp": None if deadline is None else deadline.isoformat(),
            "batch_id": batch_id,
            "class_id": class_id,
            "timestamp": timestamp.isoformat(),
        }
    )
    expected = dict(payload)
    expected |= {
        "category": category.value,
        "priority": priority.value,
        "action_required": action_required,
        "correlation_id": "correlation-1",
        "timestamp": timestamp.isoformat(),
    }
    nullable = {
        "deadline": None if deadline is None else deadline.isoformat(),
        "batch_id": batch_id,
        "class_id": class_id,
    }
    for name, value in nullable.items():
        expected[name] = payload.get(name) if value is None else value
    assert event.notification.data == expected


@pytest.mark.parametrize("absent", [{}, {"action_required": None, "timestamp": None}])
def test_a_field_that_the_event_leaves_out(absent: dict[str, None]) -> None:
    """The payload's own word stands where the event says nothing, and else the default."""
    payload = {"action_required": "perhaps", "timestamp": "yesterday"}
    assert good(data={"payload": payload, **absent}).notification.data.items() >= payload.items()
    assert good(data=absent).notification.data["action_required"] is False


def test_who_what_and_by_whom() -> None:
    """The notification is the teacher's, of the event's type, and known by the event's id."""
    notification = good().notification
    assert notification.user_id == "teacher-1"
    assert notification.event_type == "batch_results_ready"
    assert notification.idempotency_key == EVENT_ID
    assert str(notification.correlation_id) == str(UUID(int=1))
    assert notification.source_service == "result_service"
    assert notification.durable


def test_an_id_in_another_spelling_is_the_same_id() -> None:
    """A publisher that writes ids in upper case is recognised when it repeats itself."""
    assert good(event_id=EVENT_ID.upper()).notification.idempotency_key == EVENT_ID


@pytest.mark.parametrize("source", ["", "s" * 257, "ä" * 129])
def test_a_service_whose_name_nothing_can_carry(source: str) -> None:
    """The teacher is told all the same."""
    assert good(source_service=source).notification.source_service is None


def test_an_event_without_an_id_is_known_by_what_it_says() -> None:
    """Read twice it is the same, and another event is another."""
    first, again = (envelope(), envelope())
    other = envelope(data={"teacher_id": "teacher-2"})
    keys = []
    for fields in (first, again, other):
        del fields["event_id"]
        event = read_event(json.dumps(fields).encode())
        assert isinstance(event, TeacherEvent)
        keys.append(event.notification.idempotency_key)
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize("metadata", [None, 1, "text", [1, 2], True])
def test_metadata_that_is_none(metadata: object) -> None:
    """What is no object counts as nothing said."""
    assert good(metadata=metadata).metadata == {}


@pytest.mark.parametrize(
    ("value", "reason", "detail"),
    [
        (None, PoisonReason.TOMBSTONE, "no value"),
        (b"", PoisonReason.NOT_JSON, "no JSON"),
        (b"\xff\xff", PoisonReason.NOT_JSON, "no JSON"),
        (b"NaN", PoisonReason.NOT_JSON, "NaN is not JSON"),
        (b"[" * 50_000, PoisonReason.NOT_JSON, "nested too deeply"),
        (b"1" * 5_000, PoisonReason.NOT_JSON, "no JSON"),
        (b"7", PoisonReason.INVALID_EVENT, "no object"),
        (b"{}", PoisonReason.INVALID_EVENT, "event_type (missing)"),
        (b'{"event_type":"a","source_service":"b","data":7}', PoisonReason.INVALID_EVENT, "all of"),
    ],
)
def test_what_can_not_be_read(value: bytes | None, reason: PoisonReason, detail: str) -> None:
    """It is told what is wrong."""
    event = read_event(value)
    assert isinstance(event, Poison)
    assert event.reason is reason
    assert detail in event.detail


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"event_id": "secret"}, "event_id"),
        ({"event_id": None}, "event_id"),
        ({"data": {"teacher_id": ""}}, "teacher_id"),
        ({"data": {"priority": "secret"}}, "priority"),
        ({"data": {"payload": ["secret"]}}, "payload"),
        ({"data": {"deadline_timestamp": "secret"}}, "deadline_timestamp"),
    ],
)
def test_what_is_wrong_is_named_and_not_quoted(changes: dict[str, Any], named: str) -> None:
    """Whoever reads the reason learns the field and nothing that an event said."""
    event = read(**changes)
    assert isinstance(event, Poison)
    assert event.reason is PoisonReason.INVALID_EVENT
    assert named in event.detail
    assert "secret" not in event.detail


@settings(deadline=None)
@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_no_bytes_end_the_reading(value: bytes) -> None:
    """Whatever is in a record, it is an event or it is set aside."""
    assert isinstance(read_event(value), TeacherEvent | Poison)


@settings(deadline=None)
@given(st.sampled_from(sorted(envelope()["data"])), JSON)
def test_no_field_ends_the_reading(name: str, value: object) -> None:
    """Whatever a field holds, it is an event or it is set aside."""
    assert isinstance(read(data={name: value}), TeacherEvent | Poison)
