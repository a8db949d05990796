from __future__ import annotations

import hashlib
import json
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from huleedu_service_libs.event_utils import (
    extract_correlation_id_from_event,
    extract_user_id_from_event_data,
    generate_deterministic_event_id,
)

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters()),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters()), inner, max_size=4)
    ),
    max_leaves=8,
)
NOT_EVENTS = [
    b"",
    b"{",
    b"null",
    b"[]",
    b"7",
    b"\xff",
    b"[" * 100_000,
    b'{"data": NaN}',
    b'{"data": ' + b"9" * 5000 + b"}",
]


def raw(event: dict[str, Any], *, reverse: bool = False, indent: int | None = None) -> bytes:
    items = reversed(event.items()) if reverse else event.items()
    return json.dumps(dict(items), indent=indent).encode()


@given(st.dictionaries(st.text(), json_values), st.text(), st.booleans(), json_values)
def test_same_event_has_the_same_id(
    data: dict[str, Any], event_id: str, reverse: bool, noise: Any
) -> None:
    """A redelivered event has its first delivery's id, however its JSON is laid out."""
    first = raw({"event_id": event_id, "data": data, "event_timestamp": "then"})
    again = raw(
        {
            "metadata": noise,
            "data": dict(reversed(data.items())),
            "event_id": event_id,
            "event_timestamp": "now",
        },
        reverse=reverse,
        indent=2,
    )
    assert generate_deterministic_event_id(first) == generate_deterministic_event_id(again)


@given(json_values, json_values)
def test_different_data_has_a_different_id(one: Any, other: Any) -> None:
    """Two events with the same event id and different data are two events."""
    first, second = (json.dumps(value, sort_keys=True) for value in (one, other))
    ids = [
        generate_deterministic_event_id(raw({"event_id": "e", "data": {"value": value}}))
        for value in (one, other)
    ]
    assert (ids[0] == ids[1]) == (first == second)


def test_same_data_in_another_event_has_another_id() -> None:
    """Two events that say the same are not duplicates of each other."""
    one, other = (raw({"event_id": event_id, "data": {}}) for event_id in ("a", "b"))
    assert generate_deterministic_event_id(one) != generate_deterministic_event_id(other)


def test_id_is_stable_across_releases() -> None:
    """The id is a fixed function of the content: processes of two versions agree on it."""
    event = b'{"data": {"b": [1, "\xc3\xa4"], "a": null}, "event_id": "e-1", "x": 1}'
    canonical = rb'{"data":{"a":null,"b":[1,"\u00e4"]},"event_id":"e-1"}'
    assert generate_deterministic_event_id(event) == hashlib.sha256(canonical).hexdigest()


@pytest.mark.parametrize(
    "event", [*NOT_EVENTS, b'{"event_id": "e"}', b'{"data": null}', b'{"data": 1e400}']
)
def test_what_is_no_event_has_no_id(event: bytes) -> None:
    """Bad JSON and an event without data are reported as a ValueError."""
    with pytest.raises(ValueError, match=r"^event "):
        generate_deterministic_event_id(event)


def test_correlation_id_is_read_from_the_envelope() -> None:
    """The correlation id is found without knowing the event's model."""
    event = raw({"data": {"correlation_id": "inner"}, "correlation_id": "outer"})
    assert extract_correlation_id_from_event(event) == "outer"


@pytest.mark.parametrize(
    "event", [*NOT_EVENTS, b"{}", b'{"correlation_id": 7}', b'{"correlation_id": ""}']
)
def test_missing_correlation_id_is_none(event: bytes) -> None:
    """An event without a correlation id, or no event at all, gives none rather than an error."""
    assert extract_correlation_id_from_event(event) is None


FIELDS = [
    "user_id",
    "created_by_user_id",
    "updated_by_user_id",
    "created_by_id",
    "updated_by_id",
    "owner_id",
    "author_id",
]


@given(st.lists(st.sampled_from(FIELDS), unique=True, min_size=1))
def test_first_known_field_names_the_user(present: list[str]) -> None:
    """Where several fields name somebody, the agreed order decides, for mappings and models."""
    data = {field: f"of-{field}" for field in present}
    expected = f"of-{min(present, key=FIELDS.index)}"
    assert extract_user_id_from_event_data(data) == expected
    assert extract_user_id_from_event_data(SimpleNamespace(**data)) == expected


@pytest.mark.parametrize("nobody", [None, "", [], {}, True, 1.5])
def test_empty_field_names_nobody(nobody: Any) -> None:
    """A field without a usable value is passed over for the next one."""
    assert extract_user_id_from_event_data({"user_id": nobody}) is None
    assert extract_user_id_from_event_data({"user_id": nobody, "owner_id": "o"}) == "o"


def test_ids_that_are_no_text_become_text() -> None:
    """UUIDs and numbers are given as text."""
    user_id = UUID("5d4c5f5e-7c0e-4a37-9d53-6f7a2f2b9a11")
    assert extract_user_id_from_event_data({"user_id": user_id}) == str(user_id)
    assert extract_user_id_from_event_data({"user_id": 0}) == "0"


@pytest.mark.parametrize("data", [None, "text", 7, [], {}])
def test_data_without_a_user_is_none(data: Any) -> None:
    """Data that concerns nobody gives none."""
    assert extract_user_id_from_event_data(data) is None
