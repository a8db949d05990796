import json
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePosixPath
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, RootModel, SecretStr, model_serializer

from common_core.json_values import fits_64_bits, to_json_value, to_text


class Colour(Enum):
    RED = "red"


class Essay(BaseModel):
    title: str
    grade: float
    key: SecretStr


class Words(RootModel[list[str]]):
    pass


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no text for you")


class Unserialisable(BaseModel):
    name: str = "essay"

    @model_serializer
    def refuse(self) -> dict[str, str]:
        raise ValueError("not today")


class BrokenMapping(Mapping[str, int]):
    def __getitem__(self, key: str) -> int:
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError("gone")

    def __len__(self) -> int:
        return 1

    def __str__(self) -> str:
        return "broken"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (3, 3),
        (0.5, 0.5),
        (2**70, str(2**70)),
        (10**5000, "int"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        ("\ud800", "?"),
        (b"caf\xc3\xa9 \xff", "café \\xff"),
        (Colour.RED, "red"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (datetime(2026, 1, 1, tzinfo=UTC), "2026-01-01T00:00:00+00:00"),
        (date(2026, 1, 1), "2026-01-01"),
        (time(12, 30), "12:30:00"),
        (timedelta(seconds=90), "0:01:30"),
        (Decimal("1.10"), "1.10"),
        (PurePosixPath("/tmp/x"), "/tmp/x"),
        (ValueError("bad"), "bad"),
        (TimeoutError(), "TimeoutError"),
        (Unprintable(), "Unprintable"),
        (Unserialisable(), "name='essay'"),
        (BrokenMapping(), "broken"),
        ((1, "two"), [1, "two"]),
        ({7}, [7]),
        ({1: "one", Colour.RED: 2}, {"1": "one", "red": 2}),
        (
            Essay(title="t", grade=float("inf"), key=SecretStr("hunter2")),
            {"title": "t", "grade": "inf", "key": "**********"},
        ),
        (Words(["a"]), ["a"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_foreign_values_have_a_json_form(value: object, expected: object) -> None:
    """Every value that ends up in an error's details can be read by the client."""
    assert to_json_value(value) == expected


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.binary()
    | st.datetimes()
    | st.uuids()
    | st.decimals()
    | st.builds(ValueError, st.text()),
    lambda children: (
        st.lists(children, max_size=4)
        | st.dictionaries(st.integers() | st.text(), children, max_size=4)
        | st.tuples(children, children)
    ),
)


@given(value=ANYTHING)
def test_every_value_encodes_as_standard_json(value: Any) -> None:
    """No error body is ever lost because of what somebody put into it."""
    encoded = json.dumps(to_json_value(value), allow_nan=False, ensure_ascii=False).encode()
    assert json.loads(encoded) == to_json_value(value)


@given(value=ANYTHING)
def test_json_values_stay_as_they_are(value: Any) -> None:
    """A body that has been through JSON once is not changed by going through it again."""
    once = to_json_value(value)
    assert to_json_value(once) == once


def test_a_structure_that_contains_itself_ends() -> None:
    """A cycle in the details does not hang the service."""
    loop: dict[str, Any] = {"name": "loop"}
    loop["self"] = [loop, loop]
    assert to_json_value(loop) == {
        "name": "loop",
        "self": ["{'name': 'loop', 'self': [{...}, {...}]}"] * 2,
    }


def test_a_bottomless_structure_ends_as_text() -> None:
    """Nesting too deep for any JSON reader does not crash the error path."""
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert json.dumps(to_json_value(deep)).count("[") < 20


@given(number=st.integers())
def test_64_bits_are_where_integers_end(number: int) -> None:
    """A number is passed on exactly if it fits a signed 64-bit field."""
    try:
        number.to_bytes(8, signed=True)
    except OverflowError:
        assert not fits_64_bits(number)
    else:
        assert fits_64_bits(number)


def test_text_of_text_is_the_text() -> None:
    """Plain text passes unchanged, the empty one included."""
    assert to_text("") == ""
    assert to_text("Åsa") == "Åsa"
