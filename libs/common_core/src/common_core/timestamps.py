"""One rule for time: every timestamp in a contract is aware and in UTC."""

from datetime import UTC, datetime
from typing import Annotated, TypeAlias

from pydantic import AfterValidator

__all__ = ["UtcDatetime", "utc_now"]


def utc_now() -> datetime:
    """This moment, aware, in UTC."""
    return datetime.now(UTC)


def _in_utc(moment: datetime) -> datetime:
    # A naive value comes from a publisher that called `utcnow()`. Dropping its event would help
    # nobody, and reading it as local time would make its meaning depend on the reader's machine.
    if moment.utcoffset() is None:
        return moment.replace(tzinfo=UTC)
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("the moment in UTC is outside the years 1 to 9999") from None


UtcDatetime: TypeAlias = Annotated[datetime, AfterValidator(_in_utc)]
