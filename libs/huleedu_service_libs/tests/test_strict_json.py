"""JSON as others than Python read it."""

import pytest

from huleedu_service_libs import strict_json


def test_what_it_reads() -> None:
    """Every value of JSON is read, from text or from UTF-8."""
    expected = {"a": [1, 2.5, None, True, "é", "\ud800"]}
    text = '{"a": [1, 2.5, null, true, "é", "\\ud800"]}'
    assert strict_json.loads(text) == strict_json.loads(text.encode()) == expected


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", '{"a":-Infinity}', "{", "", "[" * 100_000])
def test_what_it_refuses(text: str) -> None:
    """What a browser would refuse, or nobody can read, is one kind of error."""
    with pytest.raises(ValueError, match=r"."):
        strict_json.loads(text)


@pytest.mark.parametrize(
    "text", ['{"a": 1, "a": 1}', '[{"b": {"a": 1, "a": 2}}]', '{"a": 1, "\\u0061": 2}']
)
def test_names_that_come_twice(text: str) -> None:
    """An object with two members of one name is refused where that is asked for."""
    strict_json.loads(text)
    with pytest.raises(ValueError, match="two members of one name"):
        strict_json.loads(text, unique_names=True)


def test_names_that_come_once() -> None:
    """Objects within objects may have the same names."""
    text = '{"a": {"a": [{"a": 1}, {"a": 2}]}}'
    assert strict_json.loads(text, unique_names=True) == {"a": {"a": [{"a": 1}, {"a": 2}]}}
