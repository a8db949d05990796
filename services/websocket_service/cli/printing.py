"""Frames of the service as lines for a person or for a script."""

import json
import sys
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import click

from services.websocket_service.cli.output import is_coloured, print_json, printable

Frame = Mapping[str, Any]

# Asked for with --verbose. An error among them: `tail` sends nothing that could be refused, so it
# announces a close, and is told with that.
_ROUTINE_TYPES = frozenset({"welcome", "heartbeat", "error"})
_WITHOUT_DATA = frozenset({"type", "event", "data", "timestamp"})


class ReaderGoneError(Exception):
    """Nobody reads standard output any more: what stands behind the pipe has had enough."""


class FramePrinter:
    """Prints what `tail` receives; `is_done` after `count` notifications."""

    def __init__(self, *, as_json: bool, verbose: bool, count: int | None) -> None:
        self._as_json = as_json
        self._verbose = verbose
        self._left = count
        self._coloured = is_coloured(sys.stdout)

    @property
    def is_done(self) -> bool:
        """Whether all that were asked for have been printed."""
        return self._left == 0

    def show(self, frame: Frame) -> None:
        """Print one frame, or leave it out; raises ReaderGoneError."""
        kind = frame.get("type", "notification")
        if kind in _ROUTINE_TYPES and not self._verbose:
            return
        try:
            self._print(kind, frame)
        except BrokenPipeError:
            raise ReaderGoneError from None
        if kind == "notification" and self._left is not None:
            self._left -= 1

    def _print(self, kind: object, frame: Frame) -> None:
        if self._as_json:
            print_json(frame)
        elif kind == "notification":
            self._show_notification(frame)
        else:
            text = f"{_local_time(frame)}  {printable(f'[{kind}]')}  {_compact(_rest(frame))}"
            self._echo(self._styled(text, dim=True))

    def _show_notification(self, frame: Frame) -> None:
        time = self._styled(_local_time(frame), dim=True)
        name = printable(str(frame.get("event") or "(no event)"))
        event = self._styled(name, fg="cyan", bold=True)
        data = _compact(frame["data"] if "data" in frame else _rest(frame))
        self._echo(f"{time}  {event}  {data}")

    def _styled(self, text: str, **style: Any) -> str:
        return click.style(text, **style) if self._coloured else text

    def _echo(self, text: str) -> None:
        click.echo(text, color=self._coloured)


def _compact(value: Any) -> str:
    return printable(json.dumps(value, ensure_ascii=False))


def _rest(frame: Frame) -> dict[str, Any]:
    return {name: value for name, value in frame.items() if name not in _WITHOUT_DATA}


def _local_time(frame: Frame) -> str:
    """When the frame was published, else when it came: local time, to the millisecond."""
    try:
        moment = datetime.fromisoformat(frame["timestamp"]).astimezone()
    except (KeyError, TypeError, ValueError, OverflowError):
        moment = datetime.now().astimezone()
    return moment.strftime("%H:%M:%S.") + f"{moment.microsecond // 1000:03d}"
