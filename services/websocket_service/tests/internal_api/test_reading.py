"""Histories as callers get them."""

import json
from datetime import UTC, datetime

import pytest

from huleedu_service_libs.history_pages import KeptNotification
from huleedu_service_libs.notification_ids import NotificationId
from services.websocket_service.internal_api.models import History
from services.websocket_service.internal_api.protocols import KeptHistory
from services.websocket_service.internal_api.reading import history_json

FIRST, SECOND = NotificationId("1-1"), NotificationId("2-1")
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def test_it_is_what_the_document_describes() -> None:
    """A history has the form that callers were promised."""
    kept = [
        KeptNotification(FIRST, b'{"id":"1-1","data":{"n":1}}'),
        KeptNotification(SECOND, b'{"id":"2-1","data":{"n":2}}', NOON),
    ]
    read = History.model_validate_json(history_json("teacher-1", KeptHistory(kept, SECOND)))
    assert read.user_id == "teacher-1"
    assert read.newest == SECOND
    assert [(one.id, one.expires_at, one.notification["data"]) for one in read.notifications] == [
        (FIRST, None, {"n": 1}),
        (SECOND, NOON, {"n": 2}),
    ]


@pytest.mark.parametrize(
    "payload",
    [
        b'{"id":"1-1","n":1.50}',
        b'{"id":"1-1","n":%b}' % (b"9" * 4000),
        b'{"id":"1-1","n":1e999}',
        b'{"id":"1-1","n":%b%b}' % (b"[" * 900, b"]" * 900),
        '{"id":"1-1","n":"\u00e9\u2028"}'.encode(),
    ],
    ids=["1.50", "4,000 digits", "more than a double", "900 levels", "not ASCII"],
)
def test_a_notification_stays_as_it_is(payload: bytes) -> None:
    """Whatever has been published is read as it was published, to the byte."""
    read = history_json("teacher-1", KeptHistory([KeptNotification(FIRST, payload)], FIRST))
    assert payload in read


@pytest.mark.parametrize("payload", [b'{"id":"1-1",', b'["id"]', b'{"id":"\xff"}', b'{"n":NaN}'])
def test_what_is_no_object_is_left_out(payload: bytes) -> None:
    """What somebody has put there, and nobody can read, keeps no other from being read."""
    kept = [KeptNotification(FIRST, payload), KeptNotification(SECOND, b'{"id":"2-1"}')]
    read = json.loads(history_json("teacher-1", KeptHistory(kept, SECOND)))
    assert read["notifications"] == [
        {"id": "2-1", "expires_at": None, "notification": {"id": "2-1"}}
    ]
    assert read["newest"] == "2-1"


def test_no_history() -> None:
    """Of a user who was told nothing there is nothing, and no newest id."""
    read = json.loads(history_json("teacher-1", KeptHistory((), None)))
    assert read == {"user_id": "teacher-1", "notifications": [], "newest": None}
