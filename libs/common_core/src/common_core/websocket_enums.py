"""How a notification is sorted and how urgent it is, for the frontend that shows it."""

from enum import StrEnum

__all__ = ["NotificationPriority", "WebSocketEventCategory"]


class WebSocketEventCategory(StrEnum):
    """The part of a teacher's work that a notification belongs to."""

    BATCH_PROGRESS = "batch_progress"
    PROCESSING_RESULTS = "processing_results"
    FILE_OPERATIONS = "file_operations"
    CLASS_MANAGEMENT = "class_management"
    STUDENT_WORKFLOW = "student_workflow"
    SYSTEM_ALERTS = "system_alerts"


class NotificationPriority(StrEnum):
    """How soon the teacher has to see it, most urgent first."""

    CRITICAL = "critical"
    IMMEDIATE = "immediate"
    HIGH = "high"
    STANDARD = "standard"
    LOW = "low"
