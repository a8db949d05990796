"""A process with WebSockets that are opened and then never read; the kernel acknowledges."""

import socket
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Final

from tests.load.bench.handshakes import Handshake
from tests.load.bench.remote import Command, Tally
from tests.load.bench.wire import TEXT, client_frame, upgrade_request

RECEIVE_BUFFER_BYTES: Final = 4096
ETHERNET_SEGMENT_BYTES: Final = 1400


@dataclass(frozen=True, slots=True)
class Neglect(Command[None]):
    """Connect, one WebSocket for each handshake."""

    port: int
    handshakes: tuple[Handshake, ...]


def _connect(port: int, handshake: Handshake) -> socket.socket:
    connection = socket.socket()
    # Both before the connection is made, since the server is told of them. With the segments of
    # loopback, 64 KiB, its kernel would keep megabytes for each connection.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, ETHERNET_SEGMENT_BYTES)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
    connection.connect(("127.0.0.1", port))
    connection.sendall(upgrade_request(port, handshake))
    received = b""
    while b"\r\n\r\n" not in received:
        chunk = connection.recv(RECEIVE_BUFFER_BYTES)
        if not chunk:
            raise ConnectionError("closed before it was open")
        received += chunk
    if handshake.greeting is not None:
        connection.sendall(client_frame(TEXT, handshake.greeting))
    return connection


def run(pipe: Connection, _tally: Tally, _slot: int) -> None:
    """The process."""
    connections: list[socket.socket] = []
    while True:
        try:
            command = pipe.recv()
        except EOFError:
            return
        match command:
            case Neglect():
                connections += [
                    _connect(command.port, handshake) for handshake in command.handshakes
                ]
                pipe.send(None)
