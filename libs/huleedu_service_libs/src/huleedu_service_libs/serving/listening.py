"""A port, taken before anything else is started, so that a busy one is found first."""

import errno
import os
import socket

from huleedu_service_libs.serving.start_error import StartError

__all__ = ["listen"]


def listen(host: str, port: int) -> socket.socket:
    """A TCP socket that listens on `host` (a name or an address, IPv6 too); port 0: a free one.

    Connections wait in its backlog until a server accepts them.

    Raises StartError if the port is taken, or the address is not one of this machine; the message
    speaks of the options `--host` and `--port`.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.removeprefix("[").removesuffix("]"),
            port,
            type=socket.SOCK_STREAM,
            flags=socket.AI_PASSIVE,
        )[0]
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no valid name"
        raise StartError(f"--host {host!r} can't be resolved: {reason}") from None
    listener = socket.socket(family, kind, protocol)
    try:
        # A port whose last connections linger in TIME_WAIT counts as free.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind(address)
        # At once: two sockets that do not listen yet can share a port.
        listener.listen()
    except OSError as error:
        listener.close()
        raise StartError(_why_not(error, host, port)) from None
    return listener


def _why_not(error: OSError, host: str, port: int) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"port {port} is in use: stop what runs there, or choose another with --port"
        case errno.EACCES:
            return f"port {port} is reserved for root: choose one above 1023 with --port"
        case errno.EADDRNOTAVAIL:
            return f"{host} is no address of this machine: choose another with --host"
        case _:
            reason = os.strerror(error.errno) if error.errno else str(error)
            return f"can't listen on {host} port {port} ({reason}): choose another --host or --port"
