import importlib
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from types import FrameType

import click

from services.websocket_service.cli.output import CliError
from services.websocket_service.cli.parameters import PORT

APPLICATION = "services.websocket_service.main:app"


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
    default=1,
    show_default=True,
    help="Processes that share the port.",
)
def serve(port: int | None, host: str, workers: int) -> None:
    """Run the service for production, with the settings that `check-config` prints.

    SIGTERM or Ctrl-C closes every connection with 1012 and ends with status 0.
    """
    # Until there is something to stop. An exception out of an import would be no clean end.
    _on_stop_signals(lambda *_: os._exit(0))

    # Imported late: see `commands`.
    import hypercorn.run  # noqa: PLC0415
    from hypercorn.config import Config  # noqa: PLC0415
    from hypercorn.utils import LifespanFailureError  # noqa: PLC0415

    from services.websocket_service.cli.listening import listen  # noqa: PLC0415
    from services.websocket_service.cli.settings import (  # noqa: PLC0415
        load_settings,
        require_usable,
    )

    settings = load_settings()
    require_usable(settings)
    listener = listen(host, settings.WEBSOCKET_SERVICE_PORT if port is None else port)

    config = Config()
    config.application_path = APPLICATION
    config.workers = workers if workers > 1 else 0
    # Not host:port: with several workers Hypercorn shares the port with whoever else wants it.
    config.bind = [f"fd://{listener.detach()}"]
    config.accesslog = None
    if workers == 1:
        # Takes longest, so it happens before the end has to be an orderly one.
        importlib.import_module(APPLICATION.partition(":")[0])
    # Until Hypercorn's own handlers are there: worker processes end with this one.
    _on_stop_signals(lambda *_: sys.exit(0))
    failed = False
    join_exited = hypercorn.run._join_exited  # noqa: SLF001

    def join_and_remember(processes: list[BaseProcess]) -> int:
        nonlocal failed
        status = join_exited(processes)
        # A supervisor that signals every process reaches a worker that is still starting: it has
        # nothing to close, and dies of SIGTERM. One that is up ends with 0.
        failed = failed or status not in {0, -signal.SIGTERM}
        return status

    # run() asks twice after a failure and returns the second answer, by when the process that
    # failed is no longer in the list: 0.
    hypercorn.run._join_exited = join_and_remember  # noqa: SLF001
    try:
        hypercorn.run.run(config)
    except LifespanFailureError as error:
        raise CliError(f"the service did not start: {error}") from None
    if failed:
        raise CliError("a worker ended unexpectedly")


def _on_stop_signals(handler: Callable[[int, FrameType | None], object]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)
