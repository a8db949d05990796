import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from services.websocket_service.cli.output import print_json
from services.websocket_service.cli.parameters import DEV_PORT, DURATION, JSON_OBJECT, TEXT

if TYPE_CHECKING:
    from huleedu_service_libs.notifications import NotificationReceipt


@click.command(short_help="Publish a notification.")
@click.option("--user", type=TEXT, required=True, help="Who is to be notified.")
@click.option("--event", type=TEXT, required=True, help="Its type, like batch_results_ready.")
@click.option(
    "--data",
    type=JSON_OBJECT,
    required=True,
    help="A JSON object; @FILE reads it from a file, - from stdin.",
)
@click.option(
    "--transient",
    is_flag=True,
    help="At most once and without an id: a client that is away misses it.",
)
@click.option(
    "--idempotency-key",
    type=TEXT,
    default=None,
    help="Of all with this key only the first is published.",
)
@click.option(
    "--collapse-key",
    type=TEXT,
    default=None,
    help="A newer one with this key replaces it wherever it still waits.",
)
@click.option(
    "--expires-in",
    type=DURATION,
    default=None,
    help="How long clients that resume get it: 30s, 15m, 1h30m, 7d.",
)
@click.option(
    "--correlation-id",
    type=TEXT,
    default=None,
    help="Published with it; logs can be searched for it.",
)
@DEV_PORT
@click.option("--json", "as_json", is_flag=True, help="Print id, receivers and duplicate as JSON.")
def notify(
    user: str,
    event: str,
    data: dict[str, Any],
    idempotency_key: str | None,
    collapse_key: str | None,
    expires_in: timedelta | None,
    correlation_id: str | None,
    port: int | None,
    *,
    transient: bool,
    as_json: bool,
) -> None:
    """Publish a notification; print its id and how many service processes received it.

    A process receives it if the user has a connection there. It is kept for a while: a client
    that was away gets it when it resumes, and `history` shows it. With --transient neither.
    """
    if transient and idempotency_key is not None:
        raise click.UsageError(
            "--transient and --idempotency-key exclude each other: leave one out"
        )
    if transient and expires_in is not None:
        raise click.UsageError(
            "--transient and --expires-in exclude each other: what is not kept does not expire"
        )
    from huleedu_service_libs.notifications import Notification  # noqa: PLC0415 - see `commands`
    from services.websocket_service.cli.publishing import publish  # noqa: PLC0415
    from services.websocket_service.cli.target import backplane  # noqa: PLC0415

    chosen = backplane(port)
    notification = Notification(
        user_id=user,
        event_type=event,
        data=data,
        durable=not transient,
        idempotency_key=idempotency_key,
        collapse_key=collapse_key,
        expires_in_s=None if expires_in is None else expires_in.total_seconds(),
        correlation_id=correlation_id,
    )
    receipt = asyncio.run(publish(chosen, notification))
    if as_json:
        print_json(
            {"id": receipt.id, "receivers": receipt.receivers, "duplicate": receipt.duplicate}
        )
    else:
        where = "" if chosen.chosen_port is None else f" (dev on port {chosen.chosen_port})"
        click.echo(f"{_described(receipt)}{where}")


def _described(receipt: "NotificationReceipt") -> str:
    if receipt.duplicate:
        return f"published nothing: this --idempotency-key was used for {receipt.id}"
    as_what = "" if receipt.id is None else f"published as {receipt.id}, "
    processes = "1 process" if receipt.receivers == 1 else f"{receipt.receivers} processes"
    received = f"{as_what}received by {processes}"
    if receipt.receivers > 0:
        return received
    later = "" if receipt.id is None else ", and gets it when a client resumes"
    return f"{received}: the user has no open connection{later}"
