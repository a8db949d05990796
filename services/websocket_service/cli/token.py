from datetime import timedelta

import click

from services.websocket_service.cli.output import print_json
from services.websocket_service.cli.parameters import DEV_PORT, DURATION, TEXT


@click.command(short_help="Print a JWT that the service accepts.")
@click.option("--user", type=TEXT, required=True, help="Whom the token is for.")
@click.option(
    "--expires-in",
    type=DURATION,
    default="1h",
    show_default=True,
    help="How long it is valid: 30s, 15m, 1h30m, 7d.",
)
@DEV_PORT
@click.option("--json", "as_json", is_flag=True, help="Print token and expires_at as JSON.")
def token(user: str, expires_in: timedelta, port: int | None, *, as_json: bool) -> None:
    """Print a JWT that the service accepts."""
    from services.websocket_service.cli.minting import mint  # noqa: PLC0415 - see `commands`
    from services.websocket_service.cli.target import signing_key  # noqa: PLC0415

    minted = mint(signing_key(port), user, expires_in)
    if as_json:
        print_json({"token": minted.token, "expires_at": minted.expires_at.isoformat()})
    else:
        click.echo(minted.token)
