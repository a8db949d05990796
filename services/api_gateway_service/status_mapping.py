from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class PublicStatus(StrEnum):
    """How far a batch is, in the words that clients know."""

    PENDING_CONTENT = "pending_content"
    READY = "ready"
    PROCESSING = "processing"
    COMPLETED_SUCCESSFULLY = "completed_successfully"
    COMPLETED_WITH_FAILURES = "completed_with_failures"
    FAILED = "failed"
    CANCELLED = "cancelled"


PUBLIC_STATUS_OF: Final[Mapping[str, PublicStatus]] = MappingProxyType(
    {
        "awaiting_content_validation": PublicStatus.PENDING_CONTENT,
        "awaiting_pipeline_configuration": PublicStatus.PENDING_CONTENT,
        "missing": PublicStatus.PENDING_CONTENT,
        "unknown": PublicStatus.PENDING_CONTENT,
        "ready_for_pipeline_execution": PublicStatus.READY,
        "processing_pipelines": PublicStatus.PROCESSING,
        "awaiting_student_validation": PublicStatus.PROCESSING,
        "student_validation_completed": PublicStatus.PROCESSING,
        "validation_timeout_processed": PublicStatus.PROCESSING,
        "completed_successfully": PublicStatus.COMPLETED_SUCCESSFULLY,
        "completed_with_failures": PublicStatus.COMPLETED_WITH_FAILURES,
        "content_ingestion_failed": PublicStatus.FAILED,
        "failed_critically": PublicStatus.FAILED,
        "cancelled": PublicStatus.CANCELLED,
    }
)
"""By the result aggregator's `overall_status`; it has no other values that anybody here knows."""
