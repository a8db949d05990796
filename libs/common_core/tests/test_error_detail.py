import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, get_args
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from common_core.error_enums import AnyErrorCode, ErrorCode
from common_core.models.error_models import ErrorDetail

CODES: list[AnyErrorCode] = [code for enum in get_args(AnyErrorCode) for code in enum]

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3)
    ),
    max_leaves=8,
)


def detail(
    error_code: AnyErrorCode = ErrorCode.TIMEOUT,
    timestamp: datetime | None = None,
    details: dict[str, Any] | None = None,
) -> ErrorDetail:
    return ErrorDetail(
        error_code=error_code,
        message="Redis did not answer",
        correlation_id=uuid4(),
        timestamp=timestamp or datetime.now(UTC),
        service="websocket_service",
        operation="subscribe",
        details=details or {},
    )


@pytest.mark.parametrize("code", CODES)
def test_every_code_survives_json_with_its_type(code: AnyErrorCode) -> None:
    """A domain's code read back from another service is still that domain's code."""
    original = detail(code)
    for restored in (
        ErrorDetail.model_validate_json(original.model_dump_json()),
        ErrorDetail.model_validate(original.model_dump(mode="json")),
        ErrorDetail.model_validate(original.model_dump()),
    ):
        assert restored == original
        assert type(restored.error_code) is type(code)


@given(details=st.dictionaries(st.text(), JSON_VALUES, max_size=4))
def test_details_survive_json(details: dict[str, Any]) -> None:
    """Whatever JSON can say, an error's details can carry to another service."""
    original = detail(details=details)
    assert ErrorDetail.model_validate_json(original.model_dump_json()) == original


def test_details_of_foreign_types_become_text_in_json_only() -> None:
    """An exception in the details does not keep the error from being sent."""
    cause = ValueError("not a number")
    batch = uuid4()
    original = detail(details={"cause": cause, "batch": batch, "ratio": float("nan")})

    assert json.loads(original.model_dump_json())["details"] == {
        "cause": "not a number",
        "batch": str(batch),
        "ratio": "nan",
    }
    assert original.model_dump()["details"]["cause"] is cause


def test_an_error_detail_cannot_be_changed() -> None:
    """Code that handles an error cannot rewrite what happened."""
    original = detail()
    with pytest.raises(ValidationError, match="frozen"):
        original.__setattr__("message", "all is well")


def test_the_details_are_a_copy() -> None:
    """Reusing the dictionary that an error was made from does not change the error."""
    given_details = {"attempt": 1}
    original = detail(details=given_details)
    given_details["attempt"] = 2
    assert original.details == {"attempt": 1}


def test_an_unknown_code_is_refused() -> None:
    """A code that no enum knows is a mistake, not an error of a new kind."""
    fields = detail().model_dump(mode="json") | {"error_code": "OUT_OF_COFFEE"}
    with pytest.raises(ValidationError, match="error_code"):
        ErrorDetail.model_validate(fields)


@given(
    moment=st.datetimes(
        min_value=datetime(1970, 1, 1),  # noqa: DTZ001 - Hypothesis takes naive bounds
        max_value=datetime(2100, 1, 1),  # noqa: DTZ001
        timezones=st.integers(-14 * 60, 14 * 60).map(
            lambda minutes: timezone(timedelta(minutes=minutes))
        ),
    )
)
def test_timestamps_are_kept_in_utc(moment: datetime) -> None:
    """The same moment reads the same, whichever zone the publisher's clock is in."""
    stamped = detail(timestamp=moment)
    assert stamped.timestamp == moment
    assert stamped.timestamp.utcoffset() == timedelta(0)


def test_a_naive_timestamp_is_read_as_utc() -> None:
    """A publisher that leaves out the zone means UTC."""
    naive = datetime(2026, 1, 1, 12)  # noqa: DTZ001 - the case under test
    assert detail(timestamp=naive).timestamp == datetime(2026, 1, 1, 12, tzinfo=UTC)


def test_a_moment_outside_the_calendar_is_refused() -> None:
    """A date that UTC cannot express is refused like any other wrong value."""
    fields = detail().model_dump(mode="json") | {"timestamp": "9999-12-31T23:59:59-10:00"}
    with pytest.raises(ValidationError, match="outside the years"):
        ErrorDetail.model_validate(fields)


def test_ids_are_read_from_text() -> None:
    """A correlation id is a UUID again after the journey."""
    original = detail()
    fields = original.model_dump(mode="json")
    assert isinstance(fields["correlation_id"], str)
    assert isinstance(ErrorDetail.model_validate(fields).correlation_id, UUID)
