"""Listening sockets: those of several workers, and where a client reaches one."""

import contextlib
import socket
import sys

from huleedu_service_libs.serving.listening import listen


class WorkerListeners:
    """The listening sockets of several workers on one port. Raises StartError as `listen` does.

    On Linux each worker has one of its own, and the kernel spreads new connections evenly over
    them: of workers that wait for the same socket, those that wake first take most. Elsewhere,
    and on a kernel that does not let the port be shared later, all have the same one.

    They stay open here, so that what waits for a worker that has died is served by the next one.
    """

    def __init__(self, host: str, port: int, count: int) -> None:
        first = listen(host, port)
        self._sockets = [first] * count
        if sys.platform == "linux":
            # Now, when the port is taken, so that it is not shared with anybody who had it before.
            first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            with contextlib.suppress(OSError):
                self._sockets = [first, *(_sharing(first) for _ in range(count - 1))]
                for listener in self._sockets:
                    listener.listen()
        self._are_own = len(set(self._sockets)) == count

    def __len__(self) -> int:
        return len(self._sockets)

    def __getitem__(self, index: int) -> socket.socket:
        return self._sockets[index]

    def forsake(self, index: int) -> None:
        """Let the others have the connections of a worker that will be away for some time.

        Its next one listens again by itself, as servers do when they begin.
        """
        if self._are_own:
            deserted = self._sockets[index]
            # Without another one to keep the place, they wait for the worker.
            with contextlib.suppress(OSError):
                self._sockets[index] = _sharing(deserted)
                deserted.close()

    def close(self) -> None:
        """Leave the port to those who still serve it."""
        for listener in self._sockets:
            listener.close()


def _sharing(listener: socket.socket) -> socket.socket:
    """Another socket on the same port, which does not listen yet."""
    twin = socket.socket(listener.family, listener.type, listener.proto)
    try:
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            twin.setsockopt(socket.SOL_SOCKET, option, 1)
        twin.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        twin.bind(listener.getsockname())
    except OSError:
        twin.close()
        raise
    return twin


def local_authority(listener: socket.socket) -> str:
    """`host:port` under which a client on this machine reaches the socket."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - read, not bound
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
