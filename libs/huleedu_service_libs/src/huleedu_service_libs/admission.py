"""Whether a user may have one more connection."""

from enum import StrEnum


class Admission(StrEnum):
    """The answer to one who asks for a place."""

    GRANTED = "granted"
    FULL = "full"
    """The user has as many as are allowed."""
    FULL_FOR_NOW = "full_for_now"
    """The same, but some of them have not been renewed in time: their process was probably
    killed, and they are about to lapse."""
