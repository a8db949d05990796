"""Ports that several workers listen on."""

import contextlib
import socket
from collections.abc import Iterator

import pytest

from huleedu_service_libs.serving.listening import listen
from huleedu_service_libs.serving.start_error import StartError
from services.websocket_service.cli.listening import WorkerListeners


@contextlib.contextmanager
def listening(count: int) -> Iterator[tuple[WorkerListeners, int]]:
    listeners = WorkerListeners("127.0.0.1", 0, count)
    with contextlib.closing(listeners):
        yield listeners, listeners[0].getsockname()[1]


@contextlib.contextmanager
def connected(port: int, count: int) -> Iterator[None]:
    with contextlib.ExitStack() as clients:
        for _ in range(count):
            clients.enter_context(socket.create_connection(("127.0.0.1", port)))
        yield


def accepted(listener: socket.socket) -> int:
    """How many connections wait there; none afterwards."""
    listener.setblocking(False)
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            listener.accept()[0].close()
            count += 1
    return count


def test_each_worker_gets_its_share() -> None:
    """Connections are spread, whether or not anybody accepts them."""
    with listening(3) as (listeners, port), connected(port, 90):
        shares = [accepted(listeners[index]) for index in range(3)]
    assert sum(shares) == 90
    assert min(shares) >= 10


def test_the_others_serve_for_one_that_is_away() -> None:
    """New connections go to those who are there, and to all once it listens again."""
    with listening(2) as (listeners, port):
        listeners.forsake(0)
        with connected(port, 20):
            assert accepted(listeners[1]) == 20
        listeners[0].listen()
        with connected(port, 60):
            shares = [accepted(listeners[index]) for index in range(2)]
        assert sum(shares) == 60
        assert min(shares) >= 10


def test_nobody_else_may_share_the_port() -> None:
    """A port that is taken is taken, for one worker or several."""
    with listening(2) as (_, port):
        with pytest.raises(StartError, match=f"port {port} is in use"):
            WorkerListeners("127.0.0.1", port, 2)
        with pytest.raises(StartError, match=f"port {port} is in use"):
            listen("127.0.0.1", port)
