"""Connection ids and the moment that is in them."""

from datetime import UTC, datetime, timedelta
from uuid import RFC_4122, UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.websocket_service.connection_ids import new_connection_id, opened_at

MILLISECOND = timedelta(milliseconds=1)
# 48 bits of milliseconds reach further than Python's calendar.
MOMENTS = st.datetimes(min_value=datetime(1970, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - Hypothesis adds it


@given(MOMENTS)
def test_an_id_is_a_uuid_that_tells_its_age(moment: datetime) -> None:
    """An id is a UUIDv7 in 32 hex digits, and says to the millisecond when it was made."""
    id_ = new_connection_id(lambda: moment)
    uuid = UUID(id_)
    assert id_ == uuid.hex
    assert uuid.version == 7
    assert uuid.variant == RFC_4122
    assert timedelta() <= moment - opened_at(id_) < MILLISECOND
    assert opened_at(id_).tzinfo is UTC


def test_ids_of_one_moment_differ() -> None:
    """However many connections come at once, each has an id of its own."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert len({new_connection_id(lambda: now) for _ in range(10_000)}) == 10_000


def test_ids_are_made_now() -> None:
    """An id without a given moment tells when it was made."""
    before = datetime.now(UTC)
    assert before - MILLISECOND < opened_at(new_connection_id()) <= datetime.now(UTC)


@pytest.mark.parametrize(
    "id_",
    [
        "",
        "x",
        "0" * 32,
        "f" * 12 + "7" + "f" * 3 + "8" + "f" * 15,
        "6f9619ff8b86d011b42d00c04fc964ff",
        "019b0000-0000-7000-8000-000000000000",
        "019b0000000070008000000000000000\n",
        "019B0000000070008000000000000000",
    ],
)
def test_what_is_no_connection_id(id_: str) -> None:
    """A text that the service would not have made has no beginning."""
    with pytest.raises(ValueError, match="no connection"):
        opened_at(id_)
