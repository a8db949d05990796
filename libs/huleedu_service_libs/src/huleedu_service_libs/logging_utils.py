"""One line per event, the same for our own loggers and for those of the libraries.

Lines go to standard error. Container platforms collect both streams, and standard output stays free
for what a command prints as its result.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import structlog
from opentelemetry import trace
from structlog.dev import ConsoleRenderer, plain_traceback

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import EventDict, Processor, WrappedLogger

__all__ = ["configure_service_logging", "create_service_logger"]

_CREDENTIAL_LOGGERS = ("h2", "hpack", "httpcore", "httpx", "websockets")
"""These print headers and URLs as they were sent, which means bearer tokens and cookies."""

_SERVER_LOGGERS = ("hypercorn.access", "hypercorn.error")
"""Hypercorn gives these handlers of their own, so each of their lines would come twice."""

_CHATTY_LOGGERS = ("aiokafka",)
"""While a broker is away it logs an error ten times a second. Those who use it say it once. Its
debug level prints records."""

_MULTILINE_KEYS = frozenset({"exception", "stack"})
_UNQUOTED_KEYS = frozenset({"event", "level", "logger", "logger_name", "timestamp"})


class _ServiceLogHandler(logging.StreamHandler[Any]):
    """A type of its own, so that a second configuration finds and replaces it."""


def configure_service_logging(
    service_name: str, environment: str | None = None, log_level: str = "INFO"
) -> None:
    """Make the process log: JSON in production or with `LOG_FORMAT=json`, else for reading.

    `environment` falls back to the variable `ENVIRONMENT`, then to "development". `log_level` is a
    level's name in any case. Each line has `service.name` and `deployment.environment`, within a
    span also `trace_id` and `span_id`, and whatever is bound with `structlog.contextvars`, above
    all `correlation_id`. The last call counts; calling it again adds no second handler.

    Raises ValueError for an unknown level.
    """
    level = logging.getLevelNamesMapping().get(log_level.upper())
    if level is None:
        raise ValueError(f"LOG_LEVEL has no level {log_level!r}")
    environment = environment or os.environ.get("ENVIRONMENT") or "development"
    as_json = environment == "production" or os.environ.get("LOG_FORMAT", "").lower() == "json"

    _route_structlog_through_logging()
    handler = _ServiceLogHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *_context_processors()],
            processors=[
                structlog.stdlib.add_logger_name,
                structlog.stdlib.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                _service_fields(service_name, environment),
                structlog.processors.StackInfoRenderer(),
                structlog.processors.format_exc_info,
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *(_json_renderers() if as_json else _readable_renderers()),
            ],
        )
    )
    root = logging.getLogger()
    for earlier in [h for h in root.handlers if isinstance(h, _ServiceLogHandler)]:
        root.removeHandler(earlier)
    root.addHandler(handler)
    root.setLevel(level)

    for name in _CREDENTIAL_LOGGERS:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
    for name in _CHATTY_LOGGERS:
        logging.getLogger(name).setLevel(
            logging.INFO if level <= logging.DEBUG else logging.CRITICAL
        )
    for name in _SERVER_LOGGERS:
        server_logger = logging.getLogger(name)
        server_logger.handlers.clear()
        server_logger.propagate = True


def create_service_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A structlog logger on top of the standard library's logger of that name.

    It may be made at import, before `configure_service_logging` has run. Until then it behaves as
    any library's logger: warnings and worse reach standard error, unformatted.
    """
    if not structlog.is_configured():
        # structlog's own default prints everything to standard output.
        _route_structlog_through_logging()
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


def _route_structlog_through_logging() -> None:
    # Nothing here depends on the configuration: loggers keep this chain after their first use.
    # What depends on it lives in the handler's formatter.
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *_context_processors(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


def _context_processors() -> list[Processor]:
    return [structlog.contextvars.merge_contextvars, _add_trace_ids]


def _add_trace_ids(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    span_context = trace.get_current_span().get_span_context()
    if span_context.is_valid:
        event.setdefault("trace_id", trace.format_trace_id(span_context.trace_id))
        event.setdefault("span_id", trace.format_span_id(span_context.span_id))
    return event


def _service_fields(service_name: str, environment: str) -> Processor:
    def add(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event["service.name"] = service_name
        event["deployment.environment"] = environment
        return event

    return add


def _json_renderers() -> list[Processor]:
    return [structlog.processors.JSONRenderer(serializer=_dump_json)]


def _dump_json(event: EventDict, *, default: Callable[[Any], Any]) -> str:
    """One JSON object, come what may: a value that JSON can't hold becomes its repr."""
    try:
        return json.dumps(event, default=default, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return json.dumps({str(key): _json_or_repr(value, default) for key, value in event.items()})


def _json_or_repr(value: object, default: Callable[[Any], Any]) -> object:
    try:
        json.dumps(value, default=default, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return repr(value)
    return value


def _readable_renderers() -> list[Processor]:
    return [
        _keep_on_one_line,
        ConsoleRenderer(
            colors=sys.stderr.isatty() and "NO_COLOR" not in os.environ,
            # Each value is quoted, so it can't pass for another key or for a line of its own.
            repr_native_str=True,
            # Tracebacks arrive as text. The default, with rich installed, is a printer that adds
            # local variables: tokens and personal data.
            exception_formatter=plain_traceback,
        ),
    ]


def _keep_on_one_line(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Escape what could forge a line or steer a terminal wherever ConsoleRenderer prints it raw.

    That is the event, the logger's name, keys, and a value whose own repr has control characters.
    A traceback keeps its lines, indented: a line that begins at the margin is ours.
    """
    return {_printable(str(key)): _tamed(key, value) for key, value in event.items()}


def _tamed(key: str, value: object) -> object:
    if key in _MULTILINE_KEYS:
        lines = (_printable(line) for line in str(value).split("\n"))
        return textwrap.indent("\n".join(lines), "    ")
    if key in _UNQUOTED_KEYS:
        return _printable(str(value))
    if isinstance(value, str):
        return value
    text = repr(value)
    return value if text.isprintable() else text


def _printable(text: str) -> str:
    return text if text.isprintable() else repr(text)
