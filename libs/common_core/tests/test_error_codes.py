from enum import StrEnum
from typing import get_args

import pytest

from common_core.error_enums import AnyErrorCode

ENUMS: tuple[type[StrEnum], ...] = get_args(AnyErrorCode)


@pytest.mark.parametrize("enum", ENUMS)
def test_a_code_is_written_as_its_name(enum: type[StrEnum]) -> None:
    """A code looks the same in Python, in JSON and in a log line."""
    assert [f"{member}" for member in enum] == [member.name for member in enum]


def test_no_two_enums_share_a_code() -> None:
    """A code read from JSON belongs to exactly one kind of error."""
    values = [member.value for enum in ENUMS for member in enum]
    assert len(values) == len(set(values)) == 41
