import json
from typing import Any

import pytest

from services.api_gateway_service.aggregator_answer import AggregatorAnswer


def body(**members: Any) -> bytes:
    return json.dumps({"user_id": "teacher-1", "overall_status": "cancelled", **members}).encode()


@pytest.mark.parametrize(
    ("overall_status", "status"),
    [
        ("awaiting_content_validation", "pending_content"),
        ("awaiting_pipeline_configuration", "pending_content"),
        ("missing", "pending_content"),
        ("unknown", "pending_content"),
        ("ready_for_pipeline_execution", "ready"),
        ("processing_pipelines", "processing"),
        ("awaiting_student_validation", "processing"),
        ("student_validation_completed", "processing"),
        ("validation_timeout_processed", "processing"),
        ("completed_successfully", "completed_successfully"),
        ("completed_with_failures", "completed_with_failures"),
        ("cancelled", "cancelled"),
        ("content_ingestion_failed", "failed"),
        ("failed_critically", "failed"),
    ],
)
def test_statuses(overall_status: str, status: str) -> None:
    """Clients know seven statuses, whatever the backend calls its own."""
    answer = AggregatorAnswer.parse(body(overall_status=overall_status))
    assert (answer.user_id, answer.status.status) == ("teacher-1", status)
    assert answer.status.details == {"overall_status": overall_status}


def test_details_are_all_but_the_users() -> None:
    """An owner sees everything but whose it is, theirs or another's, however deep it stands."""
    answer = AggregatorAnswer.parse(
        body(
            essays=[{"id": "e-1", "user_id": "student-1", "score": 1.5}],
            reviewer={"user_id": "teacher-2", "since": None},
            essay_count=12345678901234567890,
        )
    )
    assert answer.status.details == {
        "overall_status": "cancelled",
        "essays": [{"id": "e-1", "score": 1.5}],
        "reviewer": {"since": None},
        "essay_count": 12345678901234567890,
    }


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"<html>",
        b"null",
        b"[]",
        b'"processing"',
        b"{}",
        b'{"user_id": "teacher-1"}',
        b'{"overall_status": "cancelled"}',
        body(overall_status="half_done"),
        body(overall_status="CANCELLED"),
        body(overall_status=None),
        body(user_id=7),
        body(score=float("nan")),
        body(scores=[{"best": float("-inf")}]),
        body().replace(b"}", b', "score": 1e400}'),
        body().replace(b"}", b', "name": "\\ud800"}'),
        body().replace(b"}", b', "name": "\xff"}'),
        body().replace(b"}", b', "deep": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        body()[:-1],
        body() + b"}",
    ],
)
def test_garbage(garbage: bytes) -> None:
    """What is no batch is a failure of whoever said it."""
    with pytest.raises(ValueError, match=r"^.{1,200}$"):
        AggregatorAnswer.parse(garbage)


def test_garbage_is_not_quoted() -> None:
    """What an operator reads of an unexpected answer has no part of it, save for the status."""
    with pytest.raises(ValueError, match="user_id") as refused:
        AggregatorAnswer.parse(body(user_id={"name": "Ada Lovelace"}))
    assert "Ada" not in str(refused.value)
