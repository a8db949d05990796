"""Correlation ids as callers send them."""

from typing import Final
from uuid import UUID

__all__ = ["CORRELATION_ID_HEADER", "CORRELATION_ID_QUERY_PARAMETER", "parse_correlation_id"]

CORRELATION_ID_HEADER: Final = "X-Correlation-ID"
CORRELATION_ID_QUERY_PARAMETER: Final = "correlation_id"


def parse_correlation_id(*candidates: str | None) -> UUID | None:
    """The first candidate that is a UUID, or None.

    Anything else is ignored rather than passed on: the id goes into log lines and a response
    header, where a caller's free text has no business.
    """
    for candidate in candidates:
        if candidate is None:
            continue
        try:
            return UUID(candidate)
        except ValueError:
            continue
    return None
