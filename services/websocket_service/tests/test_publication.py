"""What becomes of a payload on its way to the two dialects."""

import json
import time
import tracemalloc
from datetime import UTC, datetime
from typing import Any, NoReturn

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from huleedu_service_libs.notification_ids import NotificationId
from huleedu_service_libs.notifications import Notification
from services.websocket_service.continuity import Link
from services.websocket_service.frames import Dialect
from services.websocket_service.publication import Publication

HEAD = '{"id":"5-77","prev":"4-9223372036854775807",'
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
# Half a surrogate pair can be written in JSON, with an escape, and no UTF-8 can hold it.
STRINGS = st.text(max_size=8) | st.text(st.characters(categories=["Cs"]), max_size=2)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | STRINGS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(STRINGS, inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(STRINGS | st.sampled_from(["event", "data", "type"]), VALUES, max_size=5)
SPACES = st.text(" \t\r\n", max_size=3)


# The event loop's time in seconds at which all of them came.
RECEIVED_AT = time.monotonic()


def received(payload: str | bytes) -> Publication:
    """The publication as the reader hands it out."""
    publication = Publication(payload.encode() if isinstance(payload, str) else payload)
    publication.received_at = RECEIVED_AT
    return publication


def text_of(publication: Publication, dialect: Dialect) -> bytes | None:
    """What a client of the dialect reads."""
    frame = publication.frame(dialect)
    return None if frame is None else frame.text


def notification_of(payload: str | bytes) -> bytes | None:
    """What a v1 client reads."""
    return text_of(received(payload), Dialect.V1)


def parsed(text: bytes) -> Any:
    """What a browser makes of it: standard JSON in UTF-8, or an error."""

    def refuse(constant: str) -> NoReturn:
        raise AssertionError(constant)

    text.decode()
    return json.loads(text, parse_constant=refuse)


@given(fields=OBJECTS, before=SPACES, after=SPACES, indent=st.sampled_from([None, 2]))
@example(fields={"type": "\ud800"}, before="", after="", indent=None)
def test_notification_is_the_object_with_its_type(
    fields: dict[str, Any], before: str, after: str, indent: int | None
) -> None:
    """A v1 client reads the published object, known by its type, whatever the object holds."""
    payload = before + json.dumps(fields, indent=indent) + after
    notification = notification_of(payload)

    assert notification is not None
    assert notification.startswith(b'{"type":"notification"')
    assert parsed(notification) == {**parsed(payload.encode()), "type": "notification"}


@given(fields=OBJECTS.filter(lambda fields: fields and "type" not in fields))
def test_notification_keeps_the_publishers_spelling(fields: dict[str, Any]) -> None:
    """The fields of a v1 notification are to the byte what was published."""
    payload = json.dumps(fields, ensure_ascii=True, indent=1)
    notification = notification_of(payload)
    assert notification is not None
    assert notification.removeprefix(b'{"type":"notification",') == payload[1:].encode()


@given(text=st.text())
@example(text="\ufeff{}")
@example(text="")
def test_text_is_exact(text: str) -> None:
    """A plain client reads what was published, to the byte."""
    assert text_of(received(text), Dialect.PLAIN) == text.encode()


@given(payload=st.binary())
def test_any_bytes_have_an_outcome(payload: bytes) -> None:
    """No payload breaks the delivery: it has a text or it has none."""
    publication = received(payload)
    text, notification = (text_of(publication, dialect) for dialect in Dialect)
    assert text is None or text.decode().encode() == payload
    assert notification is None or parsed(notification)["type"] == "notification"
    assert publication.trace_context is None or publication.trace_context


@pytest.mark.parametrize("payload", [b"\xff", b'{"a":"\xc3"}', b"\xed\xa0\x80", b"{}\x80"])
def test_invalid_utf8_fits_no_dialect(payload: bytes) -> None:
    """What is no UTF-8 can be sent in no text frame."""
    publication = received(payload)
    assert [publication.frame(dialect) for dialect in Dialect] == [None, None]
    assert publication.trace_context is None


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"hello",
        b"null",
        b"1",
        b'"text"',
        b"[]",
        b'[{"event":"a"}]',
        b"{",
        b'{"a":1}{"b":2}',
        b'{"a":NaN}',
        b'{"a":[Infinity]}',
        b'{"a":-Infinity,"type":"x"}',
        b'{"a":1e999,"type":"x"}',
        b"{'a':1}",
        b'\xef\xbb\xbf{"a":1}',
        '{"a":1}'.encode("utf-16-le"),
        '{"a":1,"type":"x"}'.encode("utf-32-be"),
        b'\x0b{"a":1}',
        '\u00a0{"a":1}'.encode(),
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"type":"x","a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
    ids=lambda payload: repr(payload[:24]),
)
def test_what_is_no_json_object_is_no_notification(payload: bytes) -> None:
    """A v1 client never gets a frame that its parser refuses or that is no object."""
    publication = received(payload)
    assert publication.frame(Dialect.V1) is None
    assert text_of(publication, Dialect.PLAIN) == payload


def test_object_that_can_just_be_read_can_be_written() -> None:
    """However deep an object is, there is a frame or there is none, and never a crash."""
    for depth in range(1, 1200):
        payload = b'{"type":"x","a":' + b"[" * depth + b"]" * depth + b"}"
        notification = notification_of(payload)
        assert notification is None or notification.startswith(b'{"type":"notification"')


def test_empty_object() -> None:
    """A notification that says nothing is still a notification."""
    assert notification_of(b" { } ") == b'{"type":"notification"}'


@pytest.mark.parametrize("payload", [b'{"type":"x"}', b"no object", b"\xff", b""])
def test_each_frame_is_made_once(payload: bytes) -> None:
    """However many connections a payload goes to, each dialect's bytes are made once."""
    publication = received(payload)
    for dialect in Dialect:
        assert publication.frame(dialect) is publication.frame(dialect)
    frame = publication.frame(Dialect.PLAIN)
    assert frame is None or frame.wire is frame.wire


def test_frame_says_what_is_in_it() -> None:
    """A frame knows how much was published and since when it waits, in either dialect."""
    publication = received(HEAD + published(collapse_key="progress"))
    for dialect in Dialect:
        frame = publication.frame(dialect)
        assert frame is not None
        assert frame.payload_bytes == len(publication)
        assert frame.made_at == RECEIVED_AT
        assert frame.collapse_key == publication.collapse_key == b"progress"
        assert frame.trace_context is None


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"metadata": {"traceparent": TRACEPARENT}}, True),
        ({"event": "a", "data": {}, "metadata": {"traceparent": TRACEPARENT, "a": 1}}, True),
        ({"data": {"traceparent": TRACEPARENT}}, False),
        ({"traceparent": TRACEPARENT}, False),
        ({"metadata": {"traceparent": None}}, False),
        ({"metadata": {"traceparent": [TRACEPARENT]}}, False),
        ({"metadata": [{"traceparent": TRACEPARENT}]}, False),
        ({"metadata": None, "note": '"traceparent"'}, False),
        ([{"metadata": {"traceparent": TRACEPARENT}}], False),
    ],
)
def test_trace_context(fields: Any, found: bool) -> None:
    """A trace is continued where the publisher named one in its metadata, and nowhere else."""
    publication = received(json.dumps(fields))
    context = publication.trace_context
    frame = publication.frame(Dialect.PLAIN)
    assert frame is not None
    assert frame.trace_context == context
    assert (context is not None) == found
    if context is not None:
        assert context["traceparent"] == TRACEPARENT


@pytest.mark.parametrize(
    ("flags", "found"), [("00", False), ("01", True), ("02", False), ("03", True), ("ff", True)]
)
def test_trace_that_nobody_records(flags: str, found: bool) -> None:
    """A trace that was not sampled where it began is not continued."""
    traceparent = TRACEPARENT.removesuffix("01") + flags
    context = received(json.dumps({"metadata": {"traceparent": traceparent}})).trace_context
    assert context == ({"traceparent": traceparent} if found else None)


def test_recorded_trace_beside_one_that_is_not() -> None:
    """A trace is continued though the data hold another one that is not recorded."""
    unsampled = TRACEPARENT.removesuffix("01") + "00"
    fields = {"data": {"traceparent": unsampled}, "metadata": {"traceparent": TRACEPARENT}}
    assert received(json.dumps(fields)).trace_context == {"traceparent": TRACEPARENT}


def published_at(payload: str, *, is_replayed: bool = False) -> float | None:
    """The event loop's time in seconds at which it is said to have been published."""
    publication = received(payload)
    publication.is_replayed = is_replayed
    frame = publication.frame(Dialect.PLAIN)
    assert frame is not None
    return frame.published_at


@pytest.mark.parametrize("head", [HEAD, "{"], ids=["id", "no id"])
@pytest.mark.parametrize("collapse_key", [None, "progress"])
@pytest.mark.parametrize(
    ("timestamp", "is_late"),
    [
        ("2000-01-01T00:00:00+00:00", True),
        ("2000-01-01T00:00:00Z", False),
        ("2000-01-01T02:00:00+02:00", True),
        ("2000-01-01T00:00:00.123456+00:00", True),
        ("2999-01-01T00:00:00Z", False),
        ("2000-01-01T00:00:00", False),
        ("0001-01-01T00:00:00+23:59", True),
        ("9999-12-31T23:59:59-23:59", False),
        ("yesterday", False),
        ("", False),
    ],
)
def test_time_of_publication(
    head: str, collapse_key: str | None, timestamp: str, is_late: bool
) -> None:
    """The time of publication is the library's own where it has written one, else the arrival."""
    rest = published(collapse_key=collapse_key)
    written = json.loads("{" + rest)["timestamp"]
    at = published_at(head + rest.replace(written, timestamp))
    assert at is not None
    if is_late and (head == HEAD or collapse_key is not None):
        assert RECEIVED_AT - at > 20 * 365 * 86_400
    else:
        assert at == RECEIVED_AT


def test_time_of_publication_is_found_in_what_is_published() -> None:
    """How long a notification took is known of what the library publishes now."""
    at = published_at(HEAD + published())
    assert at is not None
    assert 0 <= RECEIVED_AT - at < 60


def test_waiting_to_be_written_is_counted_once() -> None:
    """How long a notification takes is counted from publication, not in parts that overlap."""
    published_ago_s, received_ago_s = 1000, 600
    timestamp = datetime.fromtimestamp(time.time() - published_ago_s, UTC).isoformat()
    publication = Publication(f'{HEAD}"timestamp":"{timestamp}","event":"e"}}'.encode())
    publication.received_at = time.monotonic() - received_ago_s
    frame = publication.frame(Dialect.V1)
    assert frame is not None
    assert frame.published_at is not None
    assert 1000 <= time.monotonic() - frame.published_at < 1100


@pytest.mark.parametrize(
    "payload",
    [
        '{"timestamp":"2000-01-01T00:00:00Z"}',
        '{"event":"e","timestamp":"2000-01-01T00:00:00Z"}',
        HEAD + '"event":"e","timestamp":"2000-01-01T00:00:00Z"}',
        HEAD + '"data":{"timestamp":"2000-01-01T00:00:00Z"}}',
        HEAD + '"timestamp": "2000-01-01T00:00:00Z","event":"e"}',
        HEAD + '"timestamp":5,"event":"e"}',
        HEAD + '"timestamp":null,"event":"e"}',
        '[{"timestamp":"2000-01-01T00:00:00Z","event":"e"}]',
    ],
)
def test_other_times_are_not_looked_for(payload: str) -> None:
    """What merely has a field of that name counts from its arrival."""
    assert published_at(payload) == RECEIVED_AT


def test_what_is_replayed_has_no_age() -> None:
    """How long ago a replayed notification was published says nothing of the delivery."""
    assert published_at(HEAD + published(), is_replayed=True) is None


@given(timestamp=st.text() | st.datetimes().map(datetime.isoformat))
@example(timestamp="0001-01-01T00:00:00+23:59")
@example(timestamp="9999-12-31T23:59:59-23:59")
def test_any_timestamp_has_an_outcome(timestamp: str) -> None:
    """A publisher's odd clock breaks no delivery."""
    payload = HEAD + json.dumps({"timestamp": timestamp, "event": "e"}, separators=(",", ":"))[1:]
    at = published_at(payload)
    assert at is not None
    assert at <= RECEIVED_AT


def published(**options: Any) -> str:
    """An object as the shared library writes it, without its opening brace."""
    notification = Notification(user_id="a", event_type="e", data={"id": "no id"}, **options)
    return notification.encode(service="test", max_bytes=65_536).decode().removeprefix("{")


@pytest.mark.parametrize("collapse_key", [None, "progress"])
@pytest.mark.parametrize(
    ("head", "link"),
    [
        (HEAD, Link(NotificationId("5-77"), NotificationId("4-9223372036854775807"))),
        ('{"id":"1-0","prev":null,', Link(NotificationId("1-0"), None)),
        (
            '{"id":"999999999999999-1","prev":"999999999999998-1",',
            Link(NotificationId("999999999999999-1"), NotificationId("999999999999998-1")),
        ),
        ("{", None),
    ],
    ids=["durable", "first", "late", "not durable"],
)
def test_place_in_the_chain(head: str, link: Link | None, collapse_key: str | None) -> None:
    """What the shared library publishes says where it belongs, if it is durable."""
    publication = Publication((head + published(collapse_key=collapse_key)).encode())
    assert publication.link == link
    assert publication.collapse_key == (None if collapse_key is None else b"progress")


@pytest.mark.parametrize(
    "payload",
    [
        "",
        "{}",
        "null",
        "5-77",
        '{"id":"5-77"}',
        '{"id":"5-77","prev":null}',
        '{"id": "5-77", "prev": null, "event": "e"}',
        ' {"id":"5-77","prev":null,"event":"e"}',
        '{"prev":null,"id":"5-77","event":"e"}',
        '{"event":"e","id":"5-77","prev":null,"data":{}}',
        '{"id":"5-77","data":{},"prev":null,"event":"e"}',
        '{"ID":"5-77","PREV":null,"event":"e"}',
        '{"\\u0069d":"5-77","prev":null,"event":"e"}',
        '{"id":5,"prev":null,"event":"e"}',
        '{"id":null,"prev":null,"event":"e"}',
        '{"id":"5","prev":null,"event":"e"}',
        '{"id":"05-77","prev":null,"event":"e"}',
        '{"id":"-5-77","prev":null,"event":"e"}',
        '{"id":"5-77 ","prev":null,"event":"e"}',
        '{"id":"5-abc","prev":null,"event":"e"}',
        '{"id":"5-77","prev":"","event":"e"}',
        '{"id":"5-77","prev":"4","event":"e"}',
        '{"id":"5-77","prev":false,"event":"e"}',
        '{"id":"5-77","prev":"4-1" ,"event":"e"}',
        '{"id":"1000000000000000-1","prev":null,"event":"e"}',
        '{"id":"5-99999999999999999999","prev":null,"event":"e"}',
        '{"id":"\u0665-\u0667","prev":null,"event":"e"}',
        '[{"id":"5-77","prev":null,"event":"e"}]',
        '{"data":{"id":"5-77","prev":null,"event":"e"}}',
        '{"collapse_key":"k","id":"5-77","prev":null,"event":"e"}',
    ],
)
def test_what_merely_has_an_id_is_raw(payload: str) -> None:
    """A payload that is not written as the library writes it has no place in any chain."""
    assert Publication(payload.encode()).link is None


@pytest.mark.parametrize("head", [HEAD, "{"], ids=["durable", "not durable"])
@pytest.mark.parametrize(
    "rest",
    [
        '"collapse_key":"k"}',
        '"collapse_key":"","event":"e"}',
        '"collapse_key": "k","event":"e"}',
        '"collapse_key":"k" ,"event":"e"}',
        '"collapse_key":null,"event":"e"}',
        '"collapse_key":1,"event":"e"}',
        '"collapse_key":["k"],"event":"e"}',
        '"Collapse_key":"k","event":"e"}',
        '"collapse\\u005fkey":"k","event":"e"}',
        '"event":"e","collapse_key":"k","data":{}}',
        '"data":{"collapse_key":"k","event":"e"}}',
        '"collapse_key":"k',
        '"collapse_key":"k\\","event":"e"}',
    ],
)
def test_what_merely_has_a_collapse_key_stays(head: str, rest: str) -> None:
    """Only a key that is written as the library writes it makes a newer one replace an older."""
    assert Publication((head + rest).encode()).collapse_key is None


@settings(deadline=None)
@given(keys=st.lists(st.text(min_size=1, max_size=40), min_size=2, max_size=2))
@example(keys=["\\", '"'])
@example(keys=['","event":"x', "\\u00e9"])
@example(keys=["\u00e9", "e\u0301"])
@example(keys=["\u2028\x00\x7f", "\U0001f990"])
def test_any_key_is_told_from_any_other(keys: list[str]) -> None:
    """Whatever characters two keys hold, they are the same one or they are not."""
    found = []
    for key in keys:
        durable = Publication((HEAD + published(collapse_key=key)).encode())
        transient = Publication(("{" + published(collapse_key=key, durable=False)).encode())
        assert durable.collapse_key is not None
        assert durable.collapse_key == transient.collapse_key
        assert json.loads(b'"' + durable.collapse_key + b'"') == key
        found.append(durable.collapse_key)
    assert (found[0] == found[1]) == (keys[0] == keys[1])


@settings(deadline=None)
@given(payload=st.binary() | st.builds((HEAD.encode() + b"%b").__mod__, st.binary()))
def test_any_bytes_have_a_place_or_none(payload: bytes) -> None:
    """No payload breaks the look at its beginning."""
    publication = Publication(payload)
    assert publication.link is None or publication.link.id in payload.decode(errors="replace")
    assert publication.collapse_key is None or publication.collapse_key in payload


@pytest.mark.parametrize("key", ["\x01" * 256, "🦐" * 64, '"' * 256, "\\" * 256, "k" * 256])
def test_longest_key(key: str) -> None:
    """A key of the greatest length counts, however many bytes it takes in JSON."""
    payload = (HEAD + published(collapse_key=key)).encode()
    found = Publication(payload).collapse_key
    assert found is not None
    assert json.loads(b'"' + found + b'"') == key


@pytest.mark.parametrize("unit", [b"x", rb"\\"])
def test_large_payload_that_begins_like_a_key(unit: bytes) -> None:
    """Of a large payload no more is looked at than a key can have, and it takes no memory."""
    publication = Publication(b'{"collapse_key":"' + unit * 4_000_000)
    tracemalloc.start()
    try:
        assert publication.collapse_key is None
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
