from typing import Any

import pytest

from services.websocket_service.cli.position import Position

MISSED = "notifications may have been missed"


def welcome(cursor: Any, *, resumed: bool | None = None) -> dict[str, Any]:
    return {"type": "welcome", "cursor": cursor, "resumed": resumed}


def resync(reason: str, cursor: Any = "9-9") -> dict[str, Any]:
    return {"type": "resync", "reason": reason, "cursor": cursor}


def test_the_first_connection_has_nothing_to_tell() -> None:
    """From then on the cursor is where the service stands."""
    position = Position()
    assert position.cursor is None
    assert position.welcome(welcome("4-1")) is None
    assert position.cursor == "4-1"


def test_each_printed_one_moves_the_cursor() -> None:
    """One without an id leaves it where it is."""
    position = Position()
    position.welcome(welcome("4-1"))
    position.advance({"id": "5-2"})
    position.advance({"event": "transient"})
    assert position.cursor == "5-2"


def test_a_replay_that_breaks_off_is_asked_for_again() -> None:
    """The welcome names the newest id, which has not been printed when the connection breaks."""
    position = Position()
    position.welcome(welcome("4-1"))
    told = position.welcome(welcome("8-5", resumed=True))
    assert told == "resumed: no durable notification is missing"
    assert position.cursor == "4-1"
    position.advance({"id": "5-2"})
    assert position.cursor == "5-2"


def test_a_gap_is_told_even_if_the_connection_breaks_before_its_frame() -> None:
    """The next connection asks with the old cursor, and hears of it again."""
    position = Position()
    position.welcome(welcome("4-1"))
    assert position.welcome(welcome("9-9", resumed=False)) is None
    assert position.cursor == "4-1"
    assert MISSED in position.resync(resync("history_trimmed"))
    assert position.cursor == "9-9"


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("history_trimmed", "older ones are no longer kept (history_trimmed)"),
        ("history_lost", "Redis has lost what it kept (history_lost)"),
        ("cursor_unknown", "the service does not know the id to go on from (cursor_unknown)"),
        ("news", "the service can't prove otherwise (news)"),
    ],
)
def test_each_reason_has_its_words(reason: str, words: str) -> None:
    """The name in brackets is that of the protocol; one of tomorrow is shown as it is."""
    assert Position().resync(resync(reason)) == f"{MISSED}: {words}"


def test_after_a_loss_the_first_new_ones_may_be_missed_too() -> None:
    """With nothing to resume from, a later welcome that names one is a gap."""
    position = Position("7-7")
    position.welcome(welcome(None, resumed=False))
    position.resync(resync("history_lost", None))
    assert position.cursor is None
    assert position.welcome(welcome(None)) is None
    told = position.welcome(welcome("1-1"))
    assert told is not None
    assert told.startswith(MISSED)
    assert position.cursor == "1-1"


def test_a_service_that_does_not_resume_is_told_each_time() -> None:
    """It takes no notice of the cursor, which stays until there is a better one."""
    position = Position("7-7")
    assert position.welcome({}) == f"{MISSED}: the service does not resume"
    assert position.cursor == "7-7"
    assert position.welcome(welcome("8-8")) == f"{MISSED}: the service does not resume"
    assert position.cursor == "8-8"


def test_only_the_last_one_printed_is_repeated() -> None:
    """Not what the service has named without sending it, nor what has no id."""
    position = Position()
    position.welcome(welcome("4-1"))
    assert not position.is_repeated({"id": "4-1"})
    position.advance({"id": "5-2"})
    assert position.is_repeated({"id": "5-2"})
    assert not position.is_repeated({"id": "6-3"})
    assert not position.is_repeated({})


@pytest.mark.parametrize("cursor", [5, "", None, ["1-1"]])
def test_a_cursor_that_is_none_is_not_taken(cursor: Any) -> None:
    """Whatever the service says, the next connection gets a text or nothing."""
    position = Position()
    position.welcome(welcome(cursor))
    assert position.cursor is None
