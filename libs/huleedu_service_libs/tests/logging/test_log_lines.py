"""What a service's log looks like from outside: real processes, their standard error read."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from libs.huleedu_service_libs.tests.logging.conftest import RunScript

CONFIGURED = """
import logging
from structlog.contextvars import bind_contextvars
from huleedu_service_libs.logging_utils import *
configure_service_logging("orders")
logger = create_service_logger("orders.core")
"""


def json_lines(stderr: str) -> list[dict[str, Any]]:
    return [json.loads(line, parse_constant=pytest.fail) for line in stderr.splitlines()]


@pytest.mark.parametrize("variables", [{"ENVIRONMENT": "production"}, {"LOG_FORMAT": "json"}])
def test_machines_get_json(variables: dict[str, str], run_script: RunScript) -> None:
    """In production, or on request, each line is one JSON object with the service's fields."""
    finished = run_script(
        CONFIGURED
        + "bind_contextvars(correlation_id='c-1')\n"
        + "logger.warning('Order placed', order_id=7)\n"
        + "logging.getLogger('redis.client').error('gone: %s', 'redis', extra={'port': 6379})",
        **variables,
    )
    ours, theirs = json_lines(finished.stderr)
    for line in (ours, theirs):
        assert line["service.name"] == "orders"
        assert line["deployment.environment"] == variables.get("ENVIRONMENT", "development")
        assert line["correlation_id"] == "c-1"
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", line["timestamp"])
        assert "trace_id" not in line
    assert (ours["event"], ours["level"], ours["logger"]) == (
        "Order placed",
        "warning",
        "orders.core",
    )
    assert ours["order_id"] == 7
    assert (theirs["event"], theirs["level"], theirs["logger"], theirs["port"]) == (
        "gone: redis",
        "error",
        "redis.client",
        6379,
    )
    assert finished.stdout == ""


def test_people_get_text(run_script: RunScript) -> None:
    """In development lines are for reading, without colour codes in a file or pipe."""
    finished = run_script(
        CONFIGURED
        + "bind_contextvars(correlation_id='c-1')\n"
        + "logger.info('Order placed', order_id=7)\n"
        + "logging.getLogger('redis').info('lärt')"
    )
    ours, theirs = finished.stderr.splitlines()
    for part in (
        "Order placed",
        "order_id=7",
        "'c-1'",
        "'orders'",
        "'development'",
        "[orders.core",
    ):
        assert part in ours
    for part in ("lärt", "'c-1'", "'orders'", "[redis"):
        assert part in theirs
    assert "\x1b" not in finished.stderr
    assert finished.stdout == ""


@pytest.mark.parametrize(("variables", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_terminal_gets_colours(variables: dict[str, str], coloured: bool) -> None:
    """On a terminal levels are coloured, unless NO_COLOR asks for plain text."""
    ours, theirs = os.openpty()
    try:
        env = {k: v for k, v in os.environ.items() if k not in {"ENVIRONMENT", "LOG_FORMAT"}}
        env.pop("NO_COLOR", None)
        script = f"{CONFIGURED}logger.info('hello')"
        subprocess.run(
            [sys.executable, "-c", script], env=env | variables, stderr=theirs, check=True
        )
        assert (b"\x1b[" in os.read(ours, 65_536)) is coloured
    finally:
        os.close(ours)
        os.close(theirs)


def test_lines_within_a_span_name_it(run_script: RunScript) -> None:
    """A line logged during a traced operation can be found by its trace, and others have none."""
    finished = run_script(
        CONFIGURED
        + "from huleedu_service_libs.observability import *\n"
        + "with trace_operation(init_tracing('orders'), 'operation'):\n"
        + "    logger.info(get_current_trace_id())\n"
        + "    logging.getLogger('redis').info(get_current_trace_id())\n"
        + "logger.info('after')",
        LOG_FORMAT="json",
    )
    ours, theirs, after = json_lines(finished.stderr)
    for line in (ours, theirs):
        assert line["trace_id"] == line["event"]
        assert len(line["span_id"]) == 16
    assert "trace_id" not in after


def test_configuring_twice_prints_once(run_script: RunScript) -> None:
    """A second configuration replaces the first, also for loggers already in use."""
    finished = run_script(
        CONFIGURED
        + "logger.info('one')\n"
        + "configure_service_logging('renamed', 'staging', 'warning')\n"
        + "logger.info('too low')\n"
        + "logger.warning('two')\n"
        + "logging.getLogger('redis').warning('three')",
        LOG_FORMAT="json",
    )
    lines = json_lines(finished.stderr)
    assert [line["event"] for line in lines] == ["one", "two", "three"]
    assert [line["service.name"] for line in lines] == ["orders", "renamed", "renamed"]
    assert lines[1]["deployment.environment"] == "staging"


def test_logger_may_be_older_than_the_configuration(run_script: RunScript) -> None:
    """A logger made at import and used too early keeps quiet on stdout and adapts later."""
    finished = run_script(
        "from huleedu_service_libs.logging_utils import *\n"
        "logger = create_service_logger('early')\n"
        "logger.info('nobody listens yet')\n"
        "configure_service_logging('orders')\n"
        "logger.info('now')",
        LOG_FORMAT="json",
    )
    assert [line["event"] for line in json_lines(finished.stderr)] == ["now"]
    assert finished.stdout == ""


def test_unknown_level_is_refused(run_script: RunScript) -> None:
    """A misspelt level is an error at start that names the setting."""
    finished = run_script(
        "from huleedu_service_libs.logging_utils import *\n"
        "try:\n"
        "    configure_service_logging('orders', log_level='loud')\n"
        "except ValueError as error:\n"
        "    print(error)"
    )
    assert "LOG_LEVEL" in finished.stdout
    assert "loud" in finished.stdout


FAILING = """
def fail():
    password = "hunter2-in-a-local"
    raise ValueError("first\\n2026-01-01 [info] forged")
try:
    fail()
except ValueError:
    logger.exception("It failed", order_id=7)
    logging.getLogger("redis").exception("It failed too")
"""


def test_exception_is_a_field_of_its_json_line(run_script: RunScript) -> None:
    """In JSON a traceback is a string in the line of its event."""
    finished = run_script(CONFIGURED + FAILING, LOG_FORMAT="json")
    ours, theirs = json_lines(finished.stderr)
    assert ours["level"] == "error"
    for line in (ours, theirs):
        assert line["exception"].startswith("Traceback")
        assert "ValueError: first" in line["exception"]
    assert "hunter2" not in finished.stderr.replace('password = "hunter2-in-a-local"', "")


def test_exception_is_readable_and_indented(run_script: RunScript) -> None:
    """In development a traceback follows its line; none of it can pass for a line of the log."""
    finished = run_script(CONFIGURED + FAILING)
    assert "ValueError: first" in finished.stderr
    at_the_margin = [line for line in finished.stderr.splitlines() if not line.startswith(" ")]
    assert [("It failed" in line) for line in at_the_margin] == [True, True]


def test_headers_decoded_by_http2_are_never_logged(run_script: RunScript) -> None:
    """Debugging a service does not write its users' tokens into the log."""
    finished = run_script(
        CONFIGURED
        + "configure_service_logging('orders', log_level='DEBUG')\n"
        + "logging.getLogger('some.library').debug('debugging is on')\n"
        + "import hpack\n"
        + "block = hpack.Encoder().encode([('authorization', 'Bearer very-secret')])\n"
        + "assert hpack.Decoder().decode(block)\n"
        + "for name in ('hpack.hpack', 'h2.connection', 'websockets.client'):\n"
        + "    logging.getLogger(name).debug('Bearer very-secret')\n"
        + "    logging.getLogger(name).info('Bearer very-secret')\n"
    )
    assert "debugging is on" in finished.stderr
    assert "secret" not in finished.stderr


def test_server_logs_like_everybody_else(run_script: RunScript) -> None:
    """Hypercorn's lines come once and in the service's format."""
    finished = run_script(
        "from hypercorn.config import Config\n"
        "config = Config()\n"
        "config.accesslog = '-'\n"
        "log = config.log\n" + CONFIGURED + "log.error_logger.info('Running')\n"
        "log.access_logger.info('GET %(path)s', {'path': '/healthz'})",
        LOG_FORMAT="json",
    )
    lines = json_lines(finished.stderr)
    assert [line["event"] for line in lines] == ["Running", "GET /healthz"]
    assert finished.stdout == ""


def test_values_beyond_json_do_not_lose_the_line(run_script: RunScript) -> None:
    """NaN, half surrogate pairs, odd keys, cycles and objects are logged, as valid JSON."""
    finished = run_script(
        CONFIGURED
        + "cycle = []\n"
        + "cycle.append(cycle)\n"
        + "logger.info('odd', cycle=cycle, keys={(1, 2): 3}, kept=[1])\n"
        + "logger.info('odd', number=float('nan'))\n"
        + "logger.info('odd', half='\\ud800', item=object)",
        LOG_FORMAT="json",
    )
    odd, number, other = json_lines(finished.stderr)
    assert (odd["cycle"], odd["keys"]) == ("[[...]]", "{(1, 2): 3}")
    assert number["number"] == "nan"
    assert odd["kept"] == [1]
    assert other["half"] == "\ud800"
    assert other["item"] == "<class 'object'>"
