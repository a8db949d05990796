"""Text frames on their way out, encoded once for however many connections they go to."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from services.websocket_service.deflate import MIN_BYTES, deflated

# What a waiting frame costs beside its bytes (CPython 3.11, by tracemalloc). Without it, empty
# frames would pile up without a bound.
FRAME_OVERHEAD_BYTES: Final = 250

# RFC 6455, section 5.2: the length stands in the header's second byte, or, where that says 126 or
# 127, in the two or eight behind it.
_MAX_SHORT: Final = 125
_MAX_MEDIUM: Final = 0xFFFF
_FINAL_TEXT: Final = 0x81
# RFC 7692, section 6: the first reserved bit says that a message is compressed.
_COMPRESSED: Final = 0x40
_SHORT_HEADERS: Final = tuple(bytes((_FINAL_TEXT, length)) for length in range(_MAX_SHORT + 1))


class OutboundFrame:
    """One text frame; whoever makes it has checked that `text` is UTF-8.

    `made_at` is the event loop's time in seconds, from which on it has been waiting. A newer frame
    with the same `collapse_key` replaces it where it waits.
    """

    __slots__ = (
        "_deflated",
        "_text_at",
        "collapse_key",
        "made_at",
        "payload_bytes",
        "published_at",
        "size",
        "trace_context",
        "wire",
    )

    def __init__(self, text: bytes, made_at: float, collapse_key: bytes | None = None) -> None:
        length = len(text)
        header = _SHORT_HEADERS[length] if length <= _MAX_SHORT else _header(_FINAL_TEXT, length)
        self.wire = header + text
        """With its header, as servers send it: unmasked."""
        self._text_at = len(header)
        self.size = length + FRAME_OVERHEAD_BYTES
        """Bytes of memory while it waits."""
        self.made_at = made_at
        self.collapse_key = collapse_key
        self.payload_bytes: int | None = None
        """Of the publication in it; None for the server's own frames."""
        self.published_at: float | None = None
        """The event loop's time in seconds; None where the age says nothing of the delivery."""
        self.trace_context: Mapping[str, Any] | None = None
        self._deflated: bytes | None = None

    @property
    def text(self) -> bytes:
        """What stands in it."""
        return self.wire[self._text_at :]

    @property
    def deflated(self) -> bytes:
        """As `wire`, compressed where that makes it shorter."""
        if self._deflated is None:
            self._deflated = self.wire
            if len(self.wire) - self._text_at >= MIN_BYTES:
                data = deflated(self.text)
                compressed = _header(_FINAL_TEXT | _COMPRESSED, len(data)) + data
                self._deflated = min(compressed, self.wire, key=len)
        return self._deflated


def _header(first: int, length: int) -> bytes:
    if length <= _MAX_SHORT:
        return bytes((first, length))
    if length <= _MAX_MEDIUM:
        return bytes((first, 126)) + length.to_bytes(2)
    return bytes((first, 127)) + length.to_bytes(8)


def joined(frames: Sequence[OutboundFrame]) -> OutboundFrame:
    """Frames of JSON objects as one frame of a JSON array."""
    if len(frames) == 1:
        return frames[0]
    text = b"".join((b"[", b",".join([frame.text for frame in frames]), b"]"))
    return OutboundFrame(text, frames[0].made_at)
