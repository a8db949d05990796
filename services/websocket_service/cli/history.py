import asyncio
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from services.websocket_service.cli.output import is_coloured, print_json, printable
from services.websocket_service.cli.parameters import DEV_PORT, TEXT
from services.websocket_service.cli.parsing import parse_payload
from services.websocket_service.cli.printing import notification_line, published_at

if TYPE_CHECKING:
    from huleedu_service_libs.history_pages import KeptNotification
    from services.websocket_service.cli.target import Backplane

# All that any history holds: the last line counts them.
_MAX_ENTRIES = 1_000_000


@click.command(short_help="Print what is kept for a user.")
@click.option("--user", type=TEXT, required=True, help="Whose notifications.")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=None,
    help="Only so many, the newest  [default: all]",
)
@DEV_PORT
@click.option("--json", "as_json", is_flag=True, help="Print each one as one line of JSON.")
def history(user: str, limit: int | None, port: int | None, *, as_json: bool) -> None:
    """Print the notifications that are kept for a user, oldest first.

    Each with its id: `tail --since ID` prints those after it. An expired one is still kept, but
    no client gets it any more.
    """
    from services.websocket_service.cli.target import backplane  # noqa: PLC0415 - see `commands`

    kept = asyncio.run(_kept(backplane(port), user))
    shown = kept if limit is None else kept[-limit:]
    if as_json:
        _print_json(shown)
    elif kept:
        _print_lines(shown)
        how_many = f"{len(kept)} kept" if shown == kept else f"{len(shown)} of {len(kept)} kept"
        click.echo(f"{how_many} for {printable(user)}, the newest is {kept[-1].id}")
    else:
        click.echo(f"nothing is kept for {printable(user)}")


async def _kept(backplane: "Backplane", user: str) -> "list[KeptNotification]":
    from services.websocket_service.cli.redis_access import (  # noqa: PLC0415 - see `commands`
        redis_client,
    )

    async with redis_client(backplane) as redis:
        return await redis.history.kept(user, max_entries=_MAX_ENTRIES)


def _print_json(kept: "list[KeptNotification]") -> None:
    for entry in kept:
        print_json(
            {
                "id": entry.id,
                "expires_at": entry.expires_at.isoformat() if entry.expires_at else None,
                "expired": _is_expired(entry),
                "notification": parse_payload(entry.payload),
            }
        )


def _print_lines(kept: "list[KeptNotification]") -> None:
    coloured = is_coloured(sys.stdout)
    id_width = max((len(entry.id) for entry in kept), default=0)
    for entry in kept:
        frame = parse_payload(entry.payload)
        line = notification_line(
            frame,
            time=published_at(frame) or "(no time)",
            mark="[expired]" if _is_expired(entry) else "",
            coloured=coloured,
        )
        click.echo(f"{entry.id:<{id_width}}  {line}", color=coloured)


def _is_expired(entry: "KeptNotification") -> bool:
    return entry.expires_at is not None and entry.expires_at <= datetime.now(UTC)
