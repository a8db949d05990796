"""The console script `api-gateway-service`: the gateway on Hypercorn, for production."""

import argparse
import asyncio
import sys
from typing import Final

from huleedu_service_libs.serving.start_error import StartError
from huleedu_service_libs.serving.stop_signals import end_when_stopped, run_until_stopped

_MAX_PORT: Final = 65_535


def main() -> None:
    """Serve until SIGTERM or Ctrl-C; status 0 once the requests in flight are done."""
    end_when_stopped()
    arguments = _parser().parse_args()
    try:
        _serve(arguments.host, arguments.port)
    except StartError as error:
        sys.exit(f"Error: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="api-gateway-service", description="Run the API gateway for production."
    )
    parser.add_argument(
        "--host",
        default="0.0.0.0",  # noqa: S104 - in a container, the outside decides who gets in
        help="address to listen on (default: %(default)s)",
    )
    parser.add_argument(
        "--port", type=_port, help="TCP port (default: API_GATEWAY_HTTP_PORT, else 4001)"
    )
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > _MAX_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: choose one from 0 to {_MAX_PORT}")
    return int(text)


def _serve(host: str, port: int | None) -> None:
    # Imported late, as all that takes time: signals count from the beginning.
    from huleedu_service_libs.serving.hypercorn_server import (  # noqa: PLC0415
        loop_factory,
        serve_until,
    )
    from huleedu_service_libs.serving.listening import listen  # noqa: PLC0415
    from services.api_gateway_service.config import (  # noqa: PLC0415
        InvalidSettingsError,
        load_settings,
    )

    try:
        settings, _ = load_settings()
    except InvalidSettingsError as error:
        sys.exit("\n".join(f"Error: {problem}" for problem in error.problems))
    listener = listen(host, settings.HTTP_PORT if port is None else port)

    async def run(stop: asyncio.Event) -> None:
        from services.api_gateway_service.main import app  # noqa: PLC0415

        await serve_until(
            stop,
            # Starlette's messages are mappings, Hypercorn's are TypedDicts: the same dicts.
            app,  # type: ignore[arg-type]
            listener.detach(),
            requests_timeout_s=settings.SHUTDOWN_TIMEOUT_SECONDS,
        )

    run_until_stopped(run, loop_factory=loop_factory())
