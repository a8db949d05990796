"""Turning whatever somebody put into an error's details into JSON that can be sent.

Error paths run these functions on values nobody foresaw (exceptions, sets, objects whose `__str__`
raises), so they hold to two invariants: they never raise, and what `to_json_value` returns always
encodes as standard JSON in UTF-8 (no NaN, no lone surrogates, no cycles).
"""

import math
from collections.abc import Mapping
from datetime import date, datetime, time
from enum import Enum

from pydantic import BaseModel, JsonValue

__all__ = ["fits_64_bits", "to_json_value", "to_text"]

# Deeper structures are no details but data that got here by accident; beyond this they become text.
_MAX_DEPTH = 16


def fits_64_bits(number: int) -> bool:
    """Whether JSON readers and OTLP, which both stop at signed 64 bits, can take the number."""
    return -(2**63) <= number < 2**63


def to_text(value: object) -> str:
    """The value as text that encodes as UTF-8; an enum member as its value.

    An exception without a message becomes its class name, and so does an object that cannot be
    turned into text.
    """
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, bytes | bytearray):
        return value.decode("utf-8", "backslashreplace")
    try:
        text = str(value)
    except Exception:  # noqa: BLE001 - __str__ is the caller's code and may raise anything
        text = ""
    if not text and not isinstance(value, str):
        text = type(value).__name__
    return text.encode("utf-8", "replace").decode("utf-8")


def to_json_value(value: object) -> JsonValue:
    """The value in JSON's own types.

    Objects keep their fields, sets become arrays, timestamps ISO 8601, and everything that JSON
    has no notion of (exceptions, NaN, integers beyond 64 bits, secrets) becomes text.
    """
    return _convert(value, ())


def _convert(value: object, ancestors: tuple[int, ...]) -> JsonValue:
    if isinstance(value, Enum):
        value = value.value
    if not isinstance(value, BaseModel | Mapping | list | tuple | set | frozenset):
        return _scalar(value)
    if id(value) in ancestors or len(ancestors) == _MAX_DEPTH:
        return to_text(value)
    path = (*ancestors, id(value))
    try:
        if isinstance(value, BaseModel):
            return _convert(value.model_dump(), path)
        if isinstance(value, Mapping):
            return {to_text(key): _convert(item, path) for key, item in value.items()}
        return [_convert(item, path) for item in value]
    except Exception:  # noqa: BLE001 - serializers and mappings are the caller's code
        return to_text(value)


def _scalar(value: object) -> JsonValue:
    match value:
        case None | bool():
            return value
        case int() if fits_64_bits(value):
            return int(value)
        case float() if math.isfinite(value):
            return float(value)
        case datetime() | date() | time():
            return value.isoformat()
        case _:
            return to_text(value)
