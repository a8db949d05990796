import asyncio
from typing import Any

import click

from services.websocket_service.cli.output import print_json
from services.websocket_service.cli.parameters import DEV_PORT, JSON_OBJECT, TEXT


@click.command(short_help="Publish a notification.")
@click.option("--user", type=TEXT, required=True, help="Who is to be notified.")
@click.option("--event", type=TEXT, required=True, help="Its type, like batch_results_ready.")
@click.option(
    "--data",
    type=JSON_OBJECT,
    required=True,
    help="A JSON object; @FILE reads it from a file, - from stdin.",
)
@DEV_PORT
@click.option("--json", "as_json", is_flag=True, help="Print the number of receivers as JSON.")
def notify(user: str, event: str, data: dict[str, Any], port: int | None, *, as_json: bool) -> None:
    """Publish a notification and print how many service processes received it.

    A process receives it if the user has a connection there.
    """
    from services.websocket_service.cli.publishing import publish  # noqa: PLC0415 - see `commands`
    from services.websocket_service.cli.target import backplane  # noqa: PLC0415

    chosen = backplane(port)
    receivers = asyncio.run(publish(chosen, user, event, data))
    where = "" if chosen.chosen_port is None else f" (dev on port {chosen.chosen_port})"
    if as_json:
        print_json({"receivers": receivers})
    elif receivers == 0:
        click.echo(f"received by 0 processes: the user has no open connection{where}")
    else:
        processes = "process" if receivers == 1 else "processes"
        click.echo(f"received by {receivers} {processes}{where}")
