"""Spans of time as people type them: `30s`, `15m`, `1h30m`, `7d`."""

import re
from datetime import timedelta

_PARTS = re.compile(r"([0-9]+)([smhdw])")
_WHOLE = re.compile(r"(?:[0-9]+[smhdw])+")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
# Beyond it Python refuses to convert, and a timedelta ends long before.
_MAX_DIGITS = 15


def parse_duration(text: str) -> timedelta:
    """Whole numbers with units s, m, h, d or w, added up.

    Raises ValueError, with a message for the user, for anything else, for zero, and for more
    than a timedelta holds.
    """
    if not _WHOLE.fullmatch(text):
        raise ValueError(f"{text!r} is no duration: write it like 30s, 15m, 1h30m or 7d")
    parts = _PARTS.findall(text)
    if any(len(number) > _MAX_DIGITS for number, _ in parts):
        raise ValueError(f"{text!r} is too long")
    seconds = sum(int(number) * _SECONDS[unit] for number, unit in parts)
    if seconds == 0:
        raise ValueError("the duration must be longer than zero")
    try:
        return timedelta(seconds=seconds)
    except OverflowError:
        raise ValueError(f"{text!r} is too long") from None
