from typing import NamedTuple


class IssuedTicket(NamedTuple):
    """What its holder is told."""

    ticket: str
    """43 characters that need no escaping in a URL."""
    expires_in_ms: int
