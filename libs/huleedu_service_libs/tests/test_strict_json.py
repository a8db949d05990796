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
