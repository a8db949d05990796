"""The console script `websocket-service`: see `commands`."""

import signal
import sys

__all__ = ["main"]

# What a shell reports for a process that Ctrl-C has ended.
_INTERRUPTED = 130


def main() -> None:
    """Run the command that `sys.argv` names; leaves through SystemExit."""
    try:
        # Not at the top: Ctrl-C while modules load would be a traceback.
        from services.websocket_service.cli.commands import websocket_service  # noqa: PLC0415

        websocket_service()
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    finally:
        # The interpreter's end takes Python's handlers away first: a second Ctrl-C would kill it
        # there, and turn a clean stop into a failure.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
