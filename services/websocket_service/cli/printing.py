"""Frames of the service as lines for a person or for a script."""

import sys
from datetime import datetime
from typing import Any

import click

from services.websocket_service.cli.output import is_coloured, json_text, print_json, printable
from services.websocket_service.cli.parsing import Frame

NOTIFICATION = "notification"
# Asked for with --verbose. An error among them: it announces a close, and is told with that.
_ROUTINE_TYPES = frozenset(
    {"welcome", "heartbeat", "token_expiring", "token_refreshed", "going_away", "error"}
)
# Told on stderr; a script has to see it among the notifications.
_TOLD_TYPES = frozenset({"resync"})
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

    def show(self, frame: Frame, kind: object = NOTIFICATION) -> None:
        """Print one frame, or leave it out; raises ReaderGoneError."""
        left_out = _ROUTINE_TYPES if self._as_json else _ROUTINE_TYPES | _TOLD_TYPES
        if kind in left_out and not self._verbose:
            return
        try:
            self._print(kind, frame)
        except BrokenPipeError:
            raise ReaderGoneError from None
        if kind == NOTIFICATION and self._left is not None:
            self._left -= 1

    def _print(self, kind: object, frame: Frame) -> None:
        if self._as_json:
            print_json(frame)
            return
        time = published_at(frame) or _local_time(datetime.now().astimezone())
        if kind == NOTIFICATION:
            line = notification_line(frame, time=time, coloured=self._coloured)
        else:
            text = f"{time}  {printable(f'[{kind}]')}  {_compact(_rest(frame))}"
            line = _styled(text, coloured=self._coloured, dim=True)
        click.echo(line, color=self._coloured)


def notification_line(frame: Frame, *, time: str, mark: str = "", coloured: bool) -> str:
    """`time  event  mark  data`, on one line whatever the frame holds."""
    event = printable(str(frame.get("event") or "(no event)"))
    data = frame["data"] if "data" in frame else _rest(frame)
    parts = [
        _styled(time, coloured=coloured, dim=True),
        _styled(event, coloured=coloured, fg="cyan", bold=True),
        _compact(data),
    ]
    if mark:
        parts.insert(2, _styled(mark, coloured=coloured, fg="yellow"))
    return "  ".join(parts)


def published_at(frame: Frame) -> str | None:
    """Local time to the millisecond, with its date if that is not today; None if it is unknown."""
    try:
        moment = datetime.fromisoformat(frame["timestamp"]).astimezone()
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    time = _local_time(moment)
    return (
        time if moment.date() == datetime.now().astimezone().date() else f"{moment.date()} {time}"
    )


def _local_time(moment: datetime) -> str:
    return moment.strftime("%H:%M:%S.") + f"{moment.microsecond // 1000:03d}"


def _styled(text: str, *, coloured: bool, **style: Any) -> str:
    return click.style(text, **style) if coloured else text


def _compact(value: Any) -> str:
    return printable(json_text(value))


def _rest(frame: Frame) -> dict[str, Any]:
    return {name: value for name, value in frame.items() if name not in _WITHOUT_DATA}
