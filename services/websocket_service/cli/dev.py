import asyncio

import click

from huleedu_service_libs.serving.stop_signals import run_until_stopped
from services.websocket_service.cli.parameters import PORT


@click.command(short_help="Run the service with all it needs, for development.")
@click.option(
    "--port", type=PORT, default=8081, show_default=True, help="TCP port; 0 picks a free one."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--json", "as_json", is_flag=True, help="Print how to connect as one line of JSON.")
def dev(port: int, host: str, *, as_json: bool) -> None:
    """Run the service with everything it needs, for development.

    Uses REDIS_URL if it is set, else starts a private Redis that ends with this command. Makes
    a secret unless JWT_SECRET_KEY is set. Ctrl-C stops it.
    """

    async def run(stop: asyncio.Event) -> None:
        # Imported once Ctrl-C is handled: this takes a second.
        from services.websocket_service.cli.dev_service import run_dev  # noqa: PLC0415

        await run_dev(stop, host=host, port=port, as_json=as_json)

    run_until_stopped(run)
