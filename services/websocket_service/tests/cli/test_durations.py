from datetime import timedelta

import pytest

from services.websocket_service.cli.durations import parse_duration


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30s", timedelta(seconds=30)),
        ("15m", timedelta(minutes=15)),
        ("1h", timedelta(hours=1)),
        ("7d", timedelta(days=7)),
        ("2w", timedelta(weeks=2)),
        ("1h30m", timedelta(minutes=90)),
        ("1d12h5s", timedelta(days=1, hours=12, seconds=5)),
    ],
)
def test_durations_are_written_as_people_write_them(text: str, expected: timedelta) -> None:
    """Numbers with units are added up."""
    assert parse_duration(text) == expected


@pytest.mark.parametrize(
    "text", ["", "60", "h", "1x", "-1h", "1.5h", "1h ", "1 h", "\u0661h", "1H"]
)
def test_what_is_no_duration_is_refused_with_an_example(text: str) -> None:
    """The message shows how a duration is written."""
    with pytest.raises(ValueError, match="write it like 30s, 15m, 1h30m or 7d"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["0s", "0h0m"])
def test_no_time_at_all_is_refused(text: str) -> None:
    """A token that is valid for no time is a mistake."""
    with pytest.raises(ValueError, match="longer than zero"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["999999999999999w", "9" * 5000 + "s"])
def test_more_than_time_holds_is_refused(text: str) -> None:
    """A duration beyond what can be counted is refused like any other mistake."""
    with pytest.raises(ValueError, match="too long"):
        parse_duration(text)
