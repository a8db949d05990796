"""Ports: taken before anything else is started, so that a busy one is found first."""

import errno
import os
import socket

from services.websocket_service.cli.output import CliError


def listen(host: str, port: int) -> socket.socket:
    """A TCP socket that listens on `host` (a name or an address, IPv6 too); port 0: a free one.

    Connections wait in its backlog until a server accepts them.

    Raises CliError if the port is taken, or the address is not one of this machine.
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
        raise CliError(f"--host {host!r} can't be resolved: {reason}") from None
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
        raise CliError(_why_not(error, host, port)) from None
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


def local_authority(listener: socket.socket) -> str:
    """`host:port` under which a client on this machine reaches the socket."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - read, not bound
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
