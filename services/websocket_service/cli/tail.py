import asyncio

import click

from huleedu_service_libs.serving.stop_signals import run_until_stopped
from services.websocket_service.cli.parameters import DEV_PORT, TEXT, TOKEN, WEBSOCKET_URL


@click.command(short_help="Print notifications as they arrive.")
@click.option("--user", type=TEXT, default=None, help="Whose notifications  [default: teacher-1]")
@click.option("--token", type=TOKEN, default=None, help="A JWT, where there is no secret.")
@click.option(
    "--url", type=WEBSOCKET_URL, default=None, help="The service, like ws://127.0.0.1:8081/ws."
)
@DEV_PORT
@click.option(
    "--since",
    type=TEXT,
    metavar="ID",
    default=None,
    help="Begin after this one: `notify` and `history` print ids.",
)
@click.option("--count", type=click.IntRange(min=1), default=None, help="End after so many.")
@click.option("--verbose", is_flag=True, help="Show heartbeats and the like too.")
@click.option("--json", "as_json", is_flag=True, help="Print each frame as one line of JSON.")
def tail(
    user: str | None,
    token: str | None,
    url: str | None,
    port: int | None,
    since: str | None,
    count: int | None,
    *,
    verbose: bool,
    as_json: bool,
) -> None:
    """Print notifications as they arrive, until Ctrl-C.

    Reconnects by itself, and then prints what was published meanwhile; where the service can't
    tell, a line on stderr says that some may have been missed. Those published with --transient
    are not kept for that.
    """
    if user is not None and token is not None:
        raise click.UsageError("--user and --token exclude each other: a token names its user")

    async def run(stop: asyncio.Event) -> None:
        # Imported once Ctrl-C is handled.
        from services.websocket_service.cli.endpoint import locate_service  # noqa: PLC0415
        from services.websocket_service.cli.position import Position  # noqa: PLC0415
        from services.websocket_service.cli.printing import FramePrinter  # noqa: PLC0415
        from services.websocket_service.cli.terminal_client import run_tail  # noqa: PLC0415

        locate = locate_service(user=user, token=token, url=url, dev_port=port)
        printer = FramePrinter(as_json=as_json, verbose=verbose, count=count)
        await run_tail(locate, Position(since), printer, stop)

    run_until_stopped(run)
