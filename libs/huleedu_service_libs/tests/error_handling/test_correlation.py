from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from huleedu_service_libs.error_handling import parse_correlation_id


@given(sent=st.uuids())
def test_an_id_is_taken_as_sent(sent: UUID) -> None:
    """The caller finds its own id again."""
    assert parse_correlation_id(str(sent)) == sent


@given(sent=st.text())
def test_free_text_never_gets_through(sent: str) -> None:
    """Nothing but a UUID can reach a log line or a header by way of the correlation id."""
    parsed = parse_correlation_id(sent)
    assert parsed is None or len(str(parsed)) == 36


@pytest.mark.parametrize("sent", [None, "", "abc", "x" * 10_000, "\r\nSet-Cookie: a=b"])
def test_what_is_no_id_counts_as_not_sent(sent: str | None) -> None:
    """A caller that sends nonsense in the header can still be known by the query."""
    fallback = uuid4()
    assert parse_correlation_id(sent, str(fallback)) == fallback
    assert parse_correlation_id(sent) is None
