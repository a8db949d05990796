"""Ids of durable notifications: `<offset>-<nonce>`, see `notification_scripts`."""

import re
from typing import Final, NewType

NotificationId = NewType("NotificationId", str)

_ID: Final = re.compile(r"(?:0|[1-9][0-9]{0,14})-(?:0|[1-9][0-9]{0,18})")


def parse_notification_id(text: str) -> NotificationId | None:
    """None for what can't be the id of a notification."""
    return NotificationId(text) if _ID.fullmatch(text) else None


def offset_of(id_: NotificationId) -> int:
    """The position in the user's chain, from 1."""
    return int(id_.partition("-")[0])


def is_origin(id_: NotificationId) -> bool:
    """True for the position of a user who has had no notification yet."""
    return id_.startswith("0-")
