"""What the bridge is measured with."""

from collections.abc import Iterator
from typing import Final

from common_core.events.envelope import EventEnvelope
from common_core.events.notification_events import TeacherNotificationRequestedV1
from common_core.websocket_enums import NotificationPriority, WebSocketEventCategory
from huleedu_service_libs.redis_channels import user_channel

FILLING: Final = "x" * 700
TEACHERS: Final = 200
LAST: Final = b"last"
"""The key of the record that ends a measurement, and the teacher whom it is for."""
LAST_CHANNEL: Final = user_channel(LAST.decode())


def event(number: int, teacher: str) -> bytes:
    """An event with an id of its own, `n` in its payload and some 1.3 kB."""
    envelope = EventEnvelope[TeacherNotificationRequestedV1](
        event_type="teacher.notification.requested",
        source_service="load",
        data=TeacherNotificationRequestedV1(
            teacher_id=teacher,
            notification_type="batch_results_ready",
            category=WebSocketEventCategory.PROCESSING_RESULTS,
            priority=NotificationPriority.HIGH,
            payload={"n": number, "filling": FILLING},
            correlation_id="0b6f4a4e-6e0c-4b52-8d5c-0c3f8b1f1a11",
        ),
    )
    return envelope.model_dump_json().encode()


def keyed_events(count: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and events, for `TEACHERS` in turn; the last of them is `LAST`."""
    for number in range(count - 1):
        teacher = f"teacher-{number % TEACHERS:04}"
        yield teacher.encode(), event(number, teacher)
    yield LAST, event(count - 1, LAST.decode())
