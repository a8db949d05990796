"""JSON as others than Python read it."""

import json
from typing import Any, NoReturn

__all__ = ["loads"]


def loads(text: str | bytes, *, unique_names: bool = False) -> Any:
    """Parse JSON (RFC 8259).

    Raises ValueError, also for NaN and Infinity, which Python reads and browsers do not, for what
    is nested too deeply to be read and, with `unique_names`, for an object that has two members of
    one name: which of them counts is another for each reader.
    """
    try:
        return json.loads(
            text,
            parse_constant=_refuse,
            object_pairs_hook=_with_unique_names if unique_names else None,
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _with_unique_names(members: list[tuple[str, Any]]) -> dict[str, Any]:
    parsed = dict(members)
    if len(parsed) != len(members):
        raise ValueError("an object has two members of one name")
    return parsed
