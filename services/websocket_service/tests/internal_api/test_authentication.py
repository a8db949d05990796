"""Keys and names of callers."""

import pytest
from pydantic import SecretStr

from services.websocket_service.internal_api.authentication import ApiKey, is_service_id

KEY = "schlüssel-of-the-tests"


def test_only_the_key_matches() -> None:
    """The key matches itself in UTF-8, and nothing else matches it."""
    key = ApiKey(SecretStr(KEY))
    assert key.matches(KEY.encode())
    for wrong in (
        b"",
        KEY.encode()[:-1],
        KEY.encode() + b"x",
        KEY.encode("latin1"),
        KEY.upper().encode(),
    ):
        assert not key.matches(wrong)


def test_the_key_does_not_show() -> None:
    """Whoever logs it sees nothing of it."""
    assert KEY not in repr(ApiKey(SecretStr(KEY)))


@pytest.mark.parametrize("text", ["a", "result_service", "~!", "two words", "a" * 64])
def test_names_of_services(text: str) -> None:
    """1 to 64 printable ASCII characters name a service."""
    assert is_service_id(text)


@pytest.mark.parametrize(
    "text", ["", "a" * 65, " a", "a ", "a\n", "a\x00", "é", "a\x7f", "redacted"]
)
def test_what_names_no_service(text: str) -> None:
    """Anything else does not: it would be written into logs and notifications."""
    assert not is_service_id(text)
