"""Records for the dead-letter topic."""

from services.websocket_service.bridge.poison import Poison, PoisonReason, dead_letter
from services.websocket_service.bridge.records import EventRecord

POISON = Poison(PoisonReason.NOT_JSON, "the value is no JSON")
RECORD = EventRecord(
    topic="topic",
    partition=3,
    offset=14,
    timestamp_ms=1_700_000_000_000,
    key=b"key",
    value=b"value",
    headers=(("theirs", b"1"), ("theirs", None), ("dead-letter-reason", b"an earlier one")),
)


def test_a_dead_letter_is_the_record_and_why() -> None:
    """Key, value and headers are as they were; the others say why it is there and from where."""
    letter = dead_letter(RECORD, POISON)
    assert (letter.key, letter.value) == (b"key", b"value")
    assert letter.headers == (
        ("theirs", b"1"),
        ("theirs", None),
        ("dead-letter-reason", b"not_json"),
        ("dead-letter-detail", b"the value is no JSON"),
        ("dead-letter-topic", b"topic"),
        ("dead-letter-partition", b"3"),
        ("dead-letter-offset", b"14"),
        ("dead-letter-timestamp", b"1700000000000"),
    )


def test_one_that_is_too_large_says_so() -> None:
    """It has nothing of the record, and where that is to be found."""
    letter = dead_letter(RECORD, POISON).without_content()
    assert (letter.key, letter.value) == (None, None)
    headers = dict(letter.headers)
    assert "theirs" not in headers
    assert headers["dead-letter-offset"] == b"14"
    assert b"too large" in (headers["dead-letter-omitted"] or b"")
