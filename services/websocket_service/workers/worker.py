"""A worker process, as the supervisor starts it: `python -m … LISTENER CHANNEL`.

Both are numbers of descriptors that it inherits.
"""

import asyncio
import faulthandler
import signal
import socket
import sys

from huleedu_service_libs.serving.hypercorn_server import loop_factory, serve_until
from huleedu_service_libs.serving.start_error import StartError
from huleedu_service_libs.serving.stop_signals import STOP_SIGNALS, run_until_stopped
from services.websocket_service.app import create_app
from services.websocket_service.di import create_container
from services.websocket_service.effective_settings import InvalidSettingsError, load_settings
from services.websocket_service.protocols import MetricsProtocol
from services.websocket_service.workers.channel import Channel
from services.websocket_service.workers.supervisor_link import SupervisorLink


def main() -> None:
    """Serve until told to stop, or until the supervisor is gone; status 1 for a failed start."""
    # Says where, if it is a defect in native code that ends the process.
    faulthandler.enable()
    listener, connected = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
    # Its end has to be that of this process, whatever this process starts.
    connected.set_inheritable(False)
    failed = False

    async def run(stop: asyncio.Event) -> None:
        nonlocal failed
        link = SupervisorLink(await Channel.over(connected))
        # The supervisor has them blocked: one that came earlier is heard now.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        async with link.open(stop):
            try:
                await _serve(stop, listener, link)
            except (InvalidSettingsError, StartError) as error:
                link.failed(str(error))
                failed = True

    run_until_stopped(run, loop_factory=loop_factory())
    sys.exit(failed)


async def _serve(stop: asyncio.Event, listener: socket.socket, link: SupervisorLink) -> None:
    settings = load_settings()
    container = create_container(settings, supervisor=link)
    app = create_app(settings, container)

    async def announce() -> None:
        await container.get(MetricsProtocol)

    # After what `create_app` has registered: by then everything else is open.
    app.before_serving(announce)
    await serve_until(stop, app, listener.detach())


if __name__ == "__main__":
    main()
