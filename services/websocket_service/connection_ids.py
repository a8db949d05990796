"""Ids of connections: UUIDv7 in hex (RFC 9562, section 5.7), so that each tells its age."""

import re
import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

from common_core.timestamps import utc_now as now_in_utc
from services.websocket_service.connection import ConnectionId

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
_RANDOM_BITS: Final = 74
_LOW_BITS: Final = 62
_VERSION_7: Final = 0x7 << 76
_VARIANT: Final = 0b10 << 62
_ID: Final = re.compile(r"([0-9a-f]{12})7[0-9a-f]{3}[89ab][0-9a-f]{15}")


def new_connection_id(utc_now: Callable[[], datetime] = now_in_utc) -> ConnectionId:
    """An id that nobody else has and nobody can guess."""
    opened_at_ms = (utc_now() - _EPOCH) // _MILLISECOND
    high, low = divmod(secrets.randbits(_RANDOM_BITS), 1 << _LOW_BITS)
    return ConnectionId(f"{opened_at_ms << 80 | _VERSION_7 | high << 64 | _VARIANT | low:032x}")


def opened_at(connection_id: str) -> datetime:
    """When the connection began, UTC, to the millisecond; ValueError for what is no such id."""
    parts = _ID.fullmatch(connection_id)
    if parts is None:
        raise ValueError("no connection has such an id")
    try:
        return _EPOCH + int(parts[1], 16) * _MILLISECOND
    except OverflowError:
        raise ValueError("no connection begins after the year 9999") from None
