from __future__ import annotations

import contextlib
import io
import logging

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from huleedu_service_libs.logging_utils import configure_service_logging, create_service_logger

FORGED = "first\n2026-01-01T00:00:00Z [info     ] Admin logged in"


class Rude:
    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


@pytest.fixture(autouse=True)
def _readable_log(restored_logging: None, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001 - it undoes what the test does
    monkeypatch.delenv("LOG_FORMAT", raising=False)


# Colours are off (no terminal), so that any escape sequence in a line is a forgery too.
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters()))
@example(FORGED)
@example("\r\x1b[2K\x1b[31m")
@example("\x85 \u2028 \u2029 \x0b \x0c \x1c")
@example("\ud800")
@example("\u202eoverride")
def test_logged_text_stays_in_its_line(text: str) -> None:
    """Whatever a visitor gets into the log, it can't look like another line or steer a terminal."""
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr):
        configure_service_logging("orders", "development")
    logger = create_service_logger("tests")
    logger.info(text)
    logger.info("value", field=text, nested=[text], rude=Rude(text), logger_name=text)
    logger.info("positional %s", text)
    logger.info("key", **{f"field{text}": 1})
    logging.getLogger("library").warning("%s", text)
    logging.getLogger("library").warning("extra", extra={"rude": Rude(text)})

    lines = stderr.getvalue().splitlines()
    assert len(lines) == 6
    assert all(line.isprintable() for line in lines)
    assert all(line.startswith("20") for line in lines)
