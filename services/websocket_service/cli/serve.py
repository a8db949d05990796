import asyncio
from typing import TYPE_CHECKING, Final

import click

from huleedu_service_libs.serving.stop_signals import end_when_stopped, run_until_stopped
from services.websocket_service.cli.output import CliError, say
from services.websocket_service.cli.parameters import PORT

if TYPE_CHECKING:
    from services.websocket_service.config import Settings

# The last HTTP responses, and what the interpreter's end takes on a busy machine.
_AFTER_THE_DRAIN_S: Final = 10.0


@click.command(short_help="Run the service for production.")
@click.option("--port", type=PORT, default=None, help="TCP port  [default: WEBSOCKET_SERVICE_PORT]")
@click.option(
    "--host",
    default="0.0.0.0",  # noqa: S104 - in a container, the outside decides who gets in
    show_default=True,
    help="Address to listen on.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=None,
    help="Processes that share the port  [default: WEBSOCKET_WORKERS]",
)
def serve(port: int | None, host: str, workers: int | None) -> None:
    """Run the service for production, with the settings that `check-config` prints.

    SIGTERM or Ctrl-C closes every connection with 1012 and ends with status 0. Of several workers
    one that crashes is replaced.
    """
    end_when_stopped()

    # Imported late: see `commands`.
    from services.websocket_service.cli.settings import (  # noqa: PLC0415
        load_settings,
        require_usable,
    )

    settings = load_settings()
    require_usable(settings)
    port = settings.WEBSOCKET_SERVICE_PORT if port is None else port
    workers = settings.WEBSOCKET_WORKERS if workers is None else workers
    if workers == 1:
        _serve_here(settings, host, port)
    else:
        _supervise(settings, host, port, workers)


def _serve_here(settings: "Settings", host: str, port: int) -> None:
    from huleedu_service_libs.serving.hypercorn_server import (  # noqa: PLC0415
        loop_factory,
        serve_until,
    )
    from huleedu_service_libs.serving.listening import listen  # noqa: PLC0415

    listener = listen(host, port)
    _say_what_to_know(settings)

    async def run(stop: asyncio.Event) -> None:
        # Importing it reads the environment, warns, and takes a second.
        from services.websocket_service.main import app  # noqa: PLC0415

        await serve_until(stop, app, listener.detach())

    run_until_stopped(run, loop_factory=loop_factory())


def _supervise(settings: "Settings", host: str, port: int, workers: int) -> None:
    from huleedu_service_libs.logging_utils import configure_service_logging  # noqa: PLC0415
    from services.websocket_service.cli.listening import WorkerListeners  # noqa: PLC0415
    from services.websocket_service.workers.supervisor import (  # noqa: PLC0415
        Supervisor,
        WorkersFailedError,
    )

    listeners = WorkerListeners(host, port, workers)
    for problem in settings.problems():
        say(f"Warning: {problem}")
    _say_what_to_know(settings)
    configure_service_logging(
        settings.SERVICE_NAME, settings.ENVIRONMENT.value, settings.LOG_LEVEL.value
    )

    async def run(stop: asyncio.Event) -> None:
        supervisor = Supervisor(
            listeners, stop_timeout_s=settings.longest_drain_s + _AFTER_THE_DRAIN_S
        )
        try:
            await supervisor.run(stop)
        except WorkersFailedError as error:
            raise CliError(str(error)) from None

    run_until_stopped(run)


def _say_what_to_know(settings: "Settings") -> None:
    """Once it is sure to start: what keeps it from that is told alone."""
    from services.websocket_service.effective_settings import (  # noqa: PLC0415
        notes,
        unknown_variables,
    )

    for unknown in unknown_variables():
        say(f"Warning: {unknown}")
    for note in notes(settings):
        say(f"Note: {note}")
