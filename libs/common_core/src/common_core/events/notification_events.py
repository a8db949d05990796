"""Requests to notify people."""

from typing import Any

from pydantic import BaseModel, Field

from common_core.timestamps import UtcDatetime, utc_now
from common_core.websocket_enums import NotificationPriority, WebSocketEventCategory

__all__ = ["TeacherNotificationRequestedV1"]


class TeacherNotificationRequestedV1(BaseModel):
    """A service asks that a teacher be told something.

    Who may be told what has been decided by then: the publisher names the teacher, and whoever
    delivers the notification only delivers it.
    """

    teacher_id: str = Field(min_length=1)
    notification_type: str = Field(min_length=1)
    category: WebSocketEventCategory
    priority: NotificationPriority
    payload: dict[str, Any]
    action_required: bool = False
    deadline_timestamp: UtcDatetime | None = None
    correlation_id: str
    batch_id: str | None = None
    class_id: str | None = None
    timestamp: UtcDatetime = Field(default_factory=utc_now)
