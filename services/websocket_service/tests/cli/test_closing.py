import json

import pytest

from services.websocket_service.cli.closing import Closing


@pytest.mark.parametrize("code", [1002, 1003, 1007, 1008, 1009, 4000])
def test_where_trying_again_ends_the_same_way_tail_ends(code: int) -> None:
    """Another attempt with the same credential or the same frame is no use."""
    assert Closing(code, "").ends_tail


@pytest.mark.parametrize("code", [1001, 1006, 1011, 1012, 1013, 4008, 4009])
def test_what_passes_is_tried_again(code: int) -> None:
    """Restarts, defects and slow networks end; tail goes on then."""
    assert not Closing(code, "").ends_tail


@pytest.mark.parametrize("code", [1012, 1013])
def test_the_service_says_when_to_come_back(code: int) -> None:
    """The delay in the close reason is in milliseconds."""
    assert Closing(code, '{"retry_after_ms": 1500}').retry_after_s == 1.5


@pytest.mark.parametrize(
    "reason",
    ["", "no JSON", "[]", "{}"]
    + [json.dumps({"retry_after_ms": value}) for value in (-1, True, "5", None, float("nan"))],
)
def test_a_delay_that_makes_no_sense_is_no_delay(reason: str) -> None:
    """Whatever the reason holds, tail falls back to its own delays."""
    assert Closing(1012, reason).retry_after_s is None


def test_an_endless_delay_is_cut() -> None:
    """A mistake on the other side does not stop tail for good."""
    assert Closing(1013, '{"retry_after_ms": 1e400}').retry_after_s == 86_400


def test_the_description_has_what_the_service_said() -> None:
    """A person reads the code, the error and the message."""
    reason = '{"error_code": "AUTHENTICATION_ERROR", "message": "Token has expired"}'
    assert Closing(1008, reason).description == "1008 AUTHENTICATION_ERROR, Token has expired"
    assert Closing(1006, "").description == "1006"


@pytest.mark.parametrize(
    ("code", "error_code", "expected"),
    [
        (1008, "AUTHENTICATION_ERROR", True),
        (1008, "AUTHORIZATION_ERROR", False),
        (4000, "QUOTA_EXCEEDED", False),
        (1012, "SERVICE_UNAVAILABLE", False),
    ],
)
def test_only_a_bad_token_calls_for_another(code: int, error_code: str, *, expected: bool) -> None:
    """A new token helps against an expired one, and not against a quota."""
    assert Closing(code, json.dumps({"error_code": error_code})).needs_token is expected
