"""JSON as others than Python read it."""

import json
from typing import Any, NoReturn

__all__ = ["loads"]


def loads(text: str | bytes) -> Any:
    """Parse JSON (RFC 8259).

    Raises ValueError, also for NaN and Infinity, which Python reads and browsers do not, and for
    what is nested too deeply to be read.
    """
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
