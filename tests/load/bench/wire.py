"""What a client writes: the upgrade as browsers do it, and frames."""

import base64
import os
from typing import Final

from tests.load.bench.handshakes import Handshake

TEXT: Final = 0x1
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA
OPCODE_BITS: Final = 0x0F
FINAL_BIT: Final = 0x80
MASK_BIT: Final = 0x80
EXTENDED_SIZE: Final = 126
"""In the place of the size: two bytes with it follow."""
LONG_SIZE: Final = 127
"""Eight bytes do."""
DEFLATE: Final = ("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits")


def upgrade_request(port: int, handshake: Handshake) -> bytes:
    """A browser's."""
    lines = [
        f"GET {handshake.path} HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
        *(f"{name}: {value}" for name, value in (DEFLATE, *handshake.headers)),
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def client_frame(opcode: int, payload: bytes) -> bytes:
    """One frame, of at most 65,535 bytes of payload."""
    size = len(payload)
    if size < EXTENDED_SIZE:
        length = bytes([MASK_BIT | size])
    else:
        length = bytes([MASK_BIT | EXTENDED_SIZE]) + size.to_bytes(2)
    # A mask of zeros leaves the payload as it is.
    return bytes([FINAL_BIT | opcode]) + length + bytes(4) + payload
