"""Which pages may connect."""

import pytest

from services.websocket_service.origins import AllowedOrigins

APP = "https://app.example.org"


@pytest.mark.parametrize(
    ("listed", "origin", "allowed"),
    [
        ([APP], APP, True),
        ([APP], "HTTPS://App.Example.ORG", True),
        ([f"{APP}/"], APP, True),
        (["HTTPS://App.Example.Org"], APP, True),
        (["https://other.example.org", APP], APP, True),
        ([APP], f"{APP}:8443", False),
        ([APP], "http://app.example.org", False),
        ([APP], "https://evil-app.example.org", False),
        ([APP], f"{APP}.evil.example", False),
        ([APP], "https://example.org", False),
        ([APP], "null", False),
        ([APP], "", False),
        (["*"], "https://anywhere.example", True),
        (["*", APP], "null", True),
        ([], "https://anywhere.example", True),
        ([], "null", True),
    ],
)
def test_origin(listed: list[str], origin: str, allowed: bool) -> None:
    """A page is let in if its origin, scheme and port included, is listed or none is."""
    assert AllowedOrigins(listed).allow(origin) is allowed


def test_only_browsers_have_an_origin() -> None:
    """A program that names no origin is no page that could be tricked."""
    assert AllowedOrigins([APP]).allow(None)
