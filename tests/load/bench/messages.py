"""What is published, and the mark in it by which each delivery is told from the others.

The mark is a tilde and 26 digits: the message's number among its user's, and the time of
publication on CLOCK_MONOTONIC in nanoseconds, which all processes of one host share.
"""

import json
from collections.abc import Mapping
from typing import Final

SEQUENCE_DIGITS: Final = 10
STAMP_DIGITS: Final = 16
TILDE: Final = b"~"
BLANK_MARK: Final = "~" + "0" * (SEQUENCE_DIGITS + STAMP_DIGITS)
EVENT: Final = "batch_progress"


def padded_data(user: str, padding_bytes: int) -> Mapping[str, str]:
    """A notification's data with a blank mark."""
    return {"batch": f"batch-of-{user}", "mark": BLANK_MARK, "details": "x" * padding_bytes}


def text_of_size(user: str, size_bytes: int) -> str:
    """A notification as JSON text of this size, with a blank mark."""
    bare = _text(user, 0)
    return _text(user, size_bytes - len(bare))


def mark(sequence: int, stamp_ns: int) -> bytes:
    """The digits that replace those of a blank mark."""
    return b"%010d%016d" % (sequence, stamp_ns)


def _text(user: str, padding_bytes: int) -> str:
    published = {"event": EVENT, "data": padded_data(user, padding_bytes)}
    return json.dumps(published, separators=(",", ":"))
