import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from services.websocket_service.cli.output import (
    CliProblemsError,
    is_coloured,
    print_json,
    printable,
    say,
)

if TYPE_CHECKING:
    from services.websocket_service.effective_settings import Setting

_MAX_COLUMN = 40


@click.command(
    "check-config", short_help="Print the effective settings and what is wrong with them."
)
@click.option("--json", "as_json", is_flag=True, help="Print settings and problems as JSON.")
def check_config(*, as_json: bool) -> None:
    """Print the effective settings, and exit with 1 if the service would not run well with them.

    Secrets are masked. SOURCE says where a value comes from: default, environment or .env. Notes
    are on what the service runs with all the same, and production might not.
    """
    from services.websocket_service.effective_settings import (  # noqa: PLC0415 - see `commands`
        inspect_settings,
    )

    inspection = inspect_settings()
    if as_json:
        print_json(
            {
                "settings": [asdict(row) for row in inspection.rows],
                "problems": inspection.problems,
                "notes": inspection.notes,
            }
        )
    else:
        _print_table(inspection.rows)
        for note in inspection.notes:
            say(f"Note: {note}")
    if inspection.problems:
        raise CliProblemsError(inspection.problems)


def _print_table(rows: "list[Setting]") -> None:
    coloured = is_coloured(sys.stdout)
    lines = [("NAME", "VALUE", "SOURCE")]
    lines += [(row.name, _text(row.value), _source(row)) for row in rows]
    widths = [min(_MAX_COLUMN, max(len(line[column]) for line in lines)) for column in (0, 1)]
    for index, (name, value, source) in enumerate(lines):
        text = f"{name:<{widths[0]}}  {value:<{widths[1]}}  {source}"
        is_plain = index > 0 and source != "default"
        click.echo(
            text if is_plain or not coloured else click.style(text, dim=True), color=coloured
        )


def _text(value: Any) -> str:
    if value is None:
        return "(not set)"
    return printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _source(row: "Setting") -> str:
    return row.source if row.variable == row.name else f"{row.source} ({row.variable})"
