import asyncio

import click

from huleedu_service_libs.serving.stop_signals import end_when_stopped, run_until_stopped
from services.websocket_service.cli.output import CliError
from services.websocket_service.cli.parameters import PORT


@click.command(short_help="Run the Kafka bridge as a process of its own.")
@click.option("--port", type=PORT, default=None, help="TCP port  [default: WEBSOCKET_BRIDGE_PORT]")
@click.option(
    "--host",
    default="0.0.0.0",  # noqa: S104 - in a container, the outside decides who gets in
    show_default=True,
    help="Address to listen on.",
)
def bridge(port: int | None, host: str) -> None:
    """Publish the notifications that other services request over Kafka.

    Needs KAFKA_BOOTSTRAP_SERVERS and REDIS_URL, and nothing that WebSockets need. On the port there
    are /healthz, /readyz and /metrics. SIGTERM or Ctrl-C ends it with status 0.
    """
    end_when_stopped()

    # Imported late: see `commands`.
    from huleedu_service_libs.serving.hypercorn_server import (  # noqa: PLC0415
        loop_factory,
        serve_until,
    )
    from huleedu_service_libs.serving.listening import listen  # noqa: PLC0415
    from services.websocket_service.cli.settings import load_settings  # noqa: PLC0415

    settings = load_settings()
    if settings.kafka_connection is None:
        raise CliError(
            "KAFKA_BOOTSTRAP_SERVERS must be set: without it there is no Kafka to read events from"
        )
    listener = listen(host, settings.WEBSOCKET_BRIDGE_PORT if port is None else port)

    async def run(stop: asyncio.Event) -> None:
        from services.websocket_service.app import create_bridge_app  # noqa: PLC0415

        await serve_until(stop, create_bridge_app(settings), listener.detach())

    run_until_stopped(run, loop_factory=loop_factory())
