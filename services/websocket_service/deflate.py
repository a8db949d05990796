"""permessage-deflate (RFC 7692) with no state of its own on either side of a connection.

Each message is compressed by itself. It compresses less than with a window of what was sent before,
but it is done once for all connections, and an idle connection holds nothing for it.
"""

import zlib
from typing import Final

# Shorter ones grow, or shrink by less than they cost.
MIN_BYTES: Final = 128
# A small window, made anew for each message: 12 us for 365 bytes of JSON, where zlib's defaults
# take 40 and compress them no better.
WINDOW_BITS: Final = 12
_MEMORY_LEVEL: Final = 5
# Section 7.2.1: what every flush ends with is left out.
_TAIL: Final = b"\x00\x00\xff\xff"


class MessageTooBigError(Exception):
    """It inflates to more than is allowed."""


def deflated(text: bytes) -> bytes:
    """The payload of a compressed message."""
    compressor = zlib.compressobj(wbits=-WINDOW_BITS, memLevel=_MEMORY_LEVEL)
    data = compressor.compress(text) + compressor.flush(zlib.Z_SYNC_FLUSH)
    return data.removesuffix(_TAIL)


def inflated(data: bytes | bytearray, *, max_bytes: int) -> bytes:
    """The message of a payload; never makes more than `max_bytes`.

    Raises MessageTooBigError, and zlib.error for what is no compressed message.
    """
    message = b""
    rest = data + _TAIL
    # Section 7.2.3.4: a block may say that it is the last one, and others follow.
    while rest:
        decompressor = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
        message += decompressor.decompress(rest, max_bytes + 1 - len(message))
        if len(message) > max_bytes:
            raise MessageTooBigError
        rest = decompressor.unused_data
    return message
