"""Types of command-line values."""

import json
import re
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import click

from services.websocket_service.cli.durations import parse_duration

_MAX_PORT = 65_535


class _Port(click.ParamType[int]):
    name = "port"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        if isinstance(value, int):
            return value
        if not _PORT.fullmatch(value) or int(value) > _MAX_PORT:
            self.fail(f"{value!r} is not a port", param, ctx)
        return int(value)


PORT = _Port()

DEV_PORT = click.option(
    "--port",
    type=PORT,
    default=None,
    help="Which running `dev` is meant, where there are several; the newest otherwise.",
)

_PORT = re.compile(r"[0-9]{1,5}")
# What a subprotocol header can carry of a token: RFC 7230 "token" characters.
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


class _Text(click.ParamType[str]):
    """Not blank, and valid Unicode: what the shell passed in another encoding is refused."""

    name = "text"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not value.strip():
            self.fail("must not be empty", param, ctx)
        try:
            value.encode()
        except UnicodeEncodeError:
            self.fail("is not valid UTF-8", param, ctx)
        return value


class _Token(click.ParamType[str]):
    """A bearer token; the message never quotes it."""

    name = "jwt"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not _TOKEN.fullmatch(value):
            self.fail("is no JWT: it has characters that a token never has", param, ctx)
        return value


class _Duration(click.ParamType[timedelta]):
    name = "duration"

    def convert(
        self,
        value: str | timedelta,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> timedelta:
        if isinstance(value, timedelta):
            return value
        try:
            return parse_duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _WebSocketUrl(click.ParamType[str]):
    name = "url"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            parts = urlsplit(value)
            usable = parts.scheme in {"ws", "wss"} and parts.hostname and parts.port != 0
        except ValueError:
            usable = False
        if not usable or not value.isascii() or not value.isprintable() or " " in value:
            self.fail("must be a URL like ws://127.0.0.1:8081/ws", param, ctx)
        return value


class _JsonObject(click.ParamType[dict[str, Any]]):
    """JSON text, `@file` with JSON in it, or `-` for stdin."""

    name = "json"

    def convert(
        self,
        value: str | dict[str, Any],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        try:
            parsed = json.loads(
                _json_text(value), parse_constant=_refuse_constant, parse_int=_whole_number
            )
        except OSError as error:
            self.fail(f"{value[1:]!r} can't be read: {error.strerror}", param, ctx)
        except json.JSONDecodeError as error:
            self.fail(
                f"is not valid JSON: {error.msg} at line {error.lineno} column {error.colno}",
                param,
                ctx,
            )
        except RecursionError:
            self.fail("is nested too deeply", param, ctx)
        except UnicodeDecodeError:
            self.fail("is not UTF-8", param, ctx)
        except ValueError as error:
            self.fail(f"can't be used: {error}", param, ctx)
        if not isinstance(parsed, dict):
            self.fail('must be a JSON object, like {"batch_id": "b-1"}', param, ctx)
        return parsed


def _json_text(value: str) -> str | bytes:
    if value == "-":
        return sys.stdin.buffer.read()
    if value.startswith("@"):
        return Path(value[1:]).read_bytes()
    return value


def _whole_number(digits: str) -> int:
    try:
        return int(digits)
    except ValueError:
        raise ValueError(f"a number has {len(digits)} digits") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is a number in JavaScript, not in JSON")


TEXT = _Text()
TOKEN = _Token()
DURATION = _Duration()
WEBSOCKET_URL = _WebSocketUrl()
JSON_OBJECT = _JsonObject()
