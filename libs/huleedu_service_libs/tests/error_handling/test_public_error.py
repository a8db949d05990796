import json
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator

from common_core.error_enums import ErrorCode
from common_core.models.error_models import ErrorDetail
from huleedu_service_libs.error_handling import public_error_body, public_validation_errors


def parsed_as_number(text: str) -> str:
    int(text)
    return text


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]


class SignUp(BaseModel):
    password: str = Field(max_length=8)
    pin: Annotated[str, AfterValidator(parsed_as_number)] = "0"
    age: int = Field(default=30, lt=150)
    pet: Annotated[Cat | Dog, Field(discriminator="kind")] | None = None


def problems(sent: Any) -> list[dict[str, Any]]:
    with pytest.raises(ValidationError) as caught:
        SignUp.model_validate(sent)
    return [dict(problem) for problem in public_validation_errors(caught.value.errors())]


def test_the_body_has_the_shape_that_clients_know() -> None:
    """An error looks the same in every response, and nothing internal is in it."""
    detail = ErrorDetail(
        error_code=ErrorCode.AUTHENTICATION_ERROR,
        message="Token has expired",
        correlation_id=UUID(int=7),
        timestamp=datetime(2026, 1, 1, tzinfo=UTC),
        service="websocket_service",
        operation="authenticate",
        details={"reason": "token_expired"},
        stack_trace="Traceback ...",
        trace_id="0" * 31 + "1",
        span_id="0" * 15 + "1",
    )
    assert public_error_body(detail) == {
        "error": {
            "code": "AUTHENTICATION_ERROR",
            "message": "Token has expired",
            "correlation_id": "00000000-0000-0000-0000-000000000007",
            "service": "websocket_service",
            "timestamp": "2026-01-01T00:00:00+00:00",
            "details": {"reason": "token_expired"},
        }
    }


def test_validation_errors_say_where_and_what() -> None:
    """A client can show each problem beside its field."""
    assert problems({"age": 1000}) == [
        {"location": ["password"], "type": "missing", "message": "Field required"},
        {"location": ["age"], "type": "less_than", "message": "Input should be less than 150"},
    ]


@pytest.mark.parametrize(
    ("sent", "secret"),
    [
        ({"password": "correct horse battery"}, "correct horse battery"),
        ({"password": "x", "pin": "hunter2"}, "hunter2"),
        ({"password": "x", "pet": {"kind": "hunter2"}}, "hunter2"),
        ("hunter2", "hunter2"),
    ],
)
def test_what_was_sent_is_never_sent_back(sent: Any, secret: str) -> None:
    """A password in the wrong field does not end up in a browser's console."""
    assert secret not in json.dumps(problems(sent))


def is_number(text: str) -> bool:
    try:
        int(text)
    except ValueError:
        return False
    return True


@example(pin="long enough for int() to cut it " * 20)
@given(pin=st.text(min_size=4).filter(lambda text: not is_number(text)))
def test_what_a_validator_repeats_is_never_sent_back(pin: str) -> None:
    """A message that a validator passed on from `int()` does not quote the input."""
    assert [problem["message"] for problem in problems({"password": "x", "pin": pin})] == [
        "Input is not valid"
    ]


def test_a_validators_own_message_is_told() -> None:
    """A message that quotes nothing reaches the client as it was written."""

    class Period(BaseModel):
        start: int
        end: int

        @model_validator(mode="after")
        def in_order(self) -> "Period":
            if self.end < self.start:
                raise ValueError("end must not be before start")
            return self

    with pytest.raises(ValidationError) as caught:
        Period(start=20260101, end=20250101)
    (problem,) = public_validation_errors(caught.value.errors())
    assert problem["message"] == "Value error, end must not be before start"
