"""What a client can read from a close frame."""

import json
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common_core.error_enums import ErrorCode
from huleedu_service_libs.error_handling import HuleEduError, create_error_detail_with_context
from services.websocket_service import close_reasons
from services.websocket_service.close_reasons import (
    CLOSE_REASONS,
    DEFECT,
    MAX_REASON_BYTES,
    MAX_RETRY_AFTER_MS,
    TRY_LATER,
    CloseReason,
    Reconnect,
    reason_for,
    reason_text,
)

ANY_ID = UUID("5b0c2a1e-8d5f-4a43-9a57-0c6f3c1d2e4f")
PROTOCOL_PAGE = Path(close_reasons.__file__).with_name("PROTOCOL.md")
WITH_A_REASON = [reason for reason in CLOSE_REASONS if reason.error_code is not None]
# Short messages are as likely as long ones, so that both sides of the limit are met often.
MESSAGES = st.text(max_size=20) | st.text(min_size=20, max_size=200)
DELAYS_MS = st.none() | st.integers(min_value=0, max_value=10**12)


@given(
    reason=st.sampled_from(WITH_A_REASON),
    message=MESSAGES,
    correlation_id=st.uuids(),
    retry_after_ms=DELAYS_MS,
)
def test_reason_fits_and_parses(
    reason: CloseReason, message: str, correlation_id: UUID, retry_after_ms: int | None
) -> None:
    """Whatever the reason, a client can parse it, and the frame has room for it."""
    if reason.reconnect is not Reconnect.AFTER_DELAY:
        retry_after_ms = None  # only those that may come back hear when
    text = reason_text(reason.with_message(message), correlation_id, retry_after_ms=retry_after_ms)

    assert len(text.encode()) <= MAX_REASON_BYTES
    fields = json.loads(text)
    assert fields["error_code"] == reason.error_code
    assert UUID(fields["correlation_id"]) == correlation_id
    capped = None if retry_after_ms is None else min(retry_after_ms, MAX_RETRY_AFTER_MS)
    assert fields.get("retry_after_ms") == capped
    assert message.startswith(fields["message"])


@given(message=MESSAGES, correlation_id=st.uuids())
def test_message_is_cut_no_more_than_needed(message: str, correlation_id: UUID) -> None:
    """A message that was cut would not have fitted with one more character."""
    text = reason_text(TRY_LATER.with_message(message), correlation_id)
    fields = json.loads(text)
    if fields["message"] != message:
        fields["message"] = message[: len(fields["message"]) + 1]
        longer = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
        assert len(longer.encode()) > MAX_REASON_BYTES


def test_long_delay_is_shortened_rather_than_garbled() -> None:
    """A client is told to come back too early where the time that is meant has too many digits."""
    text = reason_text(close_reasons.DRAINING, ANY_ID, retry_after_ms=60_000)
    assert json.loads(text)["retry_after_ms"] == 9_999


def test_short_message_leaves_the_id_readable() -> None:
    """Where there is room for it, the correlation id has its dashes and can be searched for."""
    assert str(ANY_ID) in reason_text(TRY_LATER.with_message("full"), ANY_ID)


def test_nobodys_fault_has_no_reason() -> None:
    """A client that closed by itself is told nothing."""
    assert reason_text(close_reasons.CLIENT_CLOSED, ANY_ID) == ""


@pytest.mark.parametrize("error_code", list(ErrorCode))
def test_every_error_ends_in_some_reason(error_code: ErrorCode) -> None:
    """Each error closes with a reason of the table, and what is not the client's says nothing."""
    detail = create_error_detail_with_context(error_code, "who and why", "test", "test", ANY_ID)
    reason = reason_for(HuleEduError(detail))

    assert any(known.with_message(reason.message) == reason for known in CLOSE_REASONS)
    if reason.error_code is error_code and reason is not DEFECT:
        assert reason.message == "who and why"
    else:
        assert reason in {DEFECT, TRY_LATER}


def test_missing_key_is_not_the_clients_fault() -> None:
    """While the service lacks its key, clients come back later and keep their tokens."""
    detail = create_error_detail_with_context(
        ErrorCode.CONFIGURATION_ERROR, "JWT_SECRET_KEY must be set", "test", "test", ANY_ID
    )
    assert reason_for(HuleEduError(detail)) == TRY_LATER


def test_protocol_page_has_the_same_table() -> None:
    """The table on the protocol page is the one that the server follows."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PROTOCOL_PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith("|") and line.split("|")[1].strip().isdigit()
    ]
    told = {(int(code), error.strip("`"), should) for code, error, _cause, should in rows}

    assert len(told) == len(rows)
    assert told == {
        (reason.code, reason.error_code or "–", reason.reconnect.value)  # noqa: RUF001 - the page's dash
        for reason in CLOSE_REASONS
    }
