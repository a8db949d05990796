"""What the commands print: results on stdout, everything else on stderr."""

import json
import os
import sys
from typing import IO, Any, TextIO

import click

from huleedu_service_libs.serving.start_error import StartError


class CliError(click.ClickException):
    """An expected failure. Its message is one line that says what to do; exit status 1."""

    def format_message(self) -> str:
        return printable(self.message)


class CliProblemsError(CliError):
    """Several independent failures, one line each; exit status 1."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems

    def show(self, file: IO[Any] | None = None) -> None:
        for problem in self.problems:
            click.echo(f"Error: {printable(problem)}", file=file, err=file is None)


class _UsageError(CliError):
    exit_code = 2


class OneLineGroup(click.Group):
    """Prints a usage error, and what keeps a server from starting, as one line.

    Click's own way takes four for the one, and a traceback for the other.
    """

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            raise _one_line(error) from None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            raise _one_line(error) from None
        except StartError as error:
            raise CliError(str(error)) from None


def _one_line(error: click.UsageError) -> click.ClickException:
    if isinstance(error, click.exceptions.NoArgsIsHelpError) or error.ctx is None:
        return error
    message = error.format_message().rstrip(".").replace("\n", " ")
    return _UsageError(f"{message} (see `{error.ctx.command_path} --help`)")


def printable(text: str) -> str:
    """The text on one line, with what could steer a terminal written as an escape sequence."""
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def say(text: str) -> None:
    """One line to stderr, for the person at the terminal."""
    click.echo(printable(text), err=True)


def json_text(value: Any, *, ensure_ascii: bool = False) -> str:
    """One line of JSON; of what is nested deeper than Python can write, that it is."""
    try:
        return json.dumps(value, ensure_ascii=ensure_ascii)
    except RecursionError:
        return '"(nested too deeply)"'


def print_json(value: Any) -> None:
    """One line of JSON to stdout, in UTF-8 where the locale has it."""
    text = json_text(value)
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        text = json_text(value, ensure_ascii=True)
    click.echo(text)


def is_coloured(stream: TextIO) -> bool:
    """True for a terminal that can show colours and a user who has not declined (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
