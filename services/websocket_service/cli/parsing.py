"""What a service sends or a history keeps, as frames; whatever it is, it can be shown."""

import json
from collections.abc import Mapping
from typing import Any

Frame = Mapping[str, Any]


def parse_frames(message: str | bytes) -> list[Frame]:
    """The frames of one message: one object, or an array of them in order."""
    value = _parse(message)
    return [_frame(each) for each in value] if isinstance(value, list) else [_frame(value)]


def parse_payload(payload: bytes) -> Frame:
    """One published payload."""
    return _frame(_parse(payload))


def _frame(value: Any) -> Frame:
    return value if isinstance(value, dict) else {"data": value}


def _parse(message: str | bytes) -> Any:
    text = message if isinstance(message, str) else message.decode(errors="backslashreplace")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
