"""Ids as clients send them back."""

import pytest

from huleedu_service_libs.notification_ids import (
    NotificationId,
    is_origin,
    offset_of,
    parse_notification_id,
)

VALID = [
    "1-0",
    "0-0",
    "0-9223372036854775807",
    "7-9223372036854775807",
    "999999999999999-9999999999999999999",
]
INVALID = [
    "",
    "-",
    "1",
    "1-",
    "-1",
    "1-2-3",
    "01-2",
    "1-02",
    "+1-2",
    "-1-2",
    "1--2",
    " 1-2",
    "1-2 ",
    "1-2\n",
    "1.0-2",
    "1e3-2",
    "0x1-2",
    "1_000-2",
    "(1-2",
    "$",
    ">",
    "*",
    "1-*",
    "+",
    "\u0661-\u0662",
    "1\uff0d2",
    "1000000000000000-1",
    "1-10000000000000000000",
    "1" * 10_000 + "-1",
    "1-2\x00",
    "1-\ud83e",
]


@pytest.mark.parametrize("text", VALID)
def test_valid_ids(text: str) -> None:
    """What can be the id of a notification is taken as it is."""
    assert parse_notification_id(text) == text


@pytest.mark.parametrize("text", INVALID)
def test_invalid_ids(text: str) -> None:
    """Whatever else a client sends as its cursor is recognised as no id."""
    assert parse_notification_id(text) is None


def test_offsets() -> None:
    """The first part of an id is the position in the chain; 0 is before the first notification."""
    assert [offset_of(NotificationId(text)) for text in VALID] == [1, 0, 0, 7, 999999999999999]
    assert [is_origin(NotificationId(text)) for text in VALID] == [False, True, True, False, False]
