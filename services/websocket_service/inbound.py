"""Frames on their way in, judged by RFC 6455 as early as their bytes allow.

Not by the parser of `websockets`: that one accepts lengths of a wrong form, counts a ping between
two fragments against the size of their message, takes a close there for a mistake, and has parsed
all that has come before its caller can say that it is too much.
"""

from enum import IntEnum
from typing import Final, NamedTuple

# RFC 6455, section 5.2: the bits of the first byte, then of the second.
_FINAL: Final = 0x80
_RESERVED: Final = 0x70
_OPCODE: Final = 0x0F
_MASKED: Final = 0x80
_LENGTH: Final = 0x7F
_MIN_HEADER_BYTES: Final = 2
_MAX_CONTROL_BYTES: Final = 125
_MAX_MEDIUM: Final = 0xFFFF
_MAX_LONG: Final = (1 << 63) - 1
_MASK_BYTES: Final = 4
# RFC 7692, section 6: the first reserved bit.
_COMPRESSED: Final = 0x40
# RFC 6455, section 7.4, and the registry of close codes: the others are not sent.
_CLOSE_CODES: Final = frozenset({*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)})
NO_CLOSE_CODE: Final = 1005
"""Of a close frame without one."""


class Opcode(IntEnum):
    """RFC 6455, section 11.8."""

    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


_OPCODES: Final = {opcode.value: opcode for opcode in Opcode}


class InvalidFrameError(Exception):
    """The peer has broken the protocol; `close_code` is what it deserves."""

    def __init__(self, close_code: int) -> None:
        super().__init__(close_code)
        self.close_code = close_code


class InboundFrame(NamedTuple):
    """A frame without its mask; the first of a compressed message says so."""

    opcode: Opcode
    payload: bytes
    is_final: bool
    is_compressed: bool


class FrameParser:
    """Makes frames of a client's bytes, one when it is asked; of no use after an error.

    It keeps no more than one frame and what was fed last.
    """

    __slots__ = ("_buffer", "_max_message_bytes", "_message_bytes", "may_be_compressed")

    def __init__(self, *, max_message_bytes: int) -> None:
        self.may_be_compressed = False
        self._buffer = bytearray()
        self._max_message_bytes = max_message_bytes
        # Of the fragments so far; None outside of a fragmented message.
        self._message_bytes: int | None = None

    def feed(self, data: bytes) -> None:
        """Add what has come."""
        self._buffer += data

    def next_frame(self) -> InboundFrame | None:
        """The next frame; None where more bytes have to come. Raises InvalidFrameError."""
        buffer = self._buffer
        if len(buffer) < _MIN_HEADER_BYTES:
            return None
        opcode = self._opcode(buffer[0], buffer[1])
        is_final = bool(buffer[0] & _FINAL)
        is_compressed = bool(buffer[0] & _COMPRESSED)
        extent = self._extent(opcode)
        if extent is None:
            return None
        start, end = extent
        if len(buffer) < end:
            return None
        payload = _unmasked(buffer[start:end], buffer[start - _MASK_BYTES : start])
        del buffer[:end]
        if opcode is Opcode.CLOSE:
            _check_close(payload)
        elif opcode < Opcode.CLOSE:
            self._message_bytes = None if is_final else (self._message_bytes or 0) + len(payload)
        return InboundFrame(opcode, payload, is_final, is_compressed)

    def _opcode(self, first: int, second: int) -> Opcode:
        opcode = _OPCODES.get(first & _OPCODE)
        if opcode is None or not second & _MASKED:
            raise InvalidFrameError(1002)
        begins_message = opcode is Opcode.TEXT or opcode is Opcode.BINARY
        allowed = _COMPRESSED if self.may_be_compressed and begins_message else 0
        if first & _RESERVED & ~allowed:
            raise InvalidFrameError(1002)
        if opcode >= Opcode.CLOSE:
            if not first & _FINAL or second & _LENGTH > _MAX_CONTROL_BYTES:
                raise InvalidFrameError(1002)
        elif (opcode is Opcode.CONTINUATION) != (self._message_bytes is not None):
            raise InvalidFrameError(1002)
        return opcode

    def _extent(self, opcode: Opcode) -> tuple[int, int] | None:
        """Where the payload of the first frame begins and ends; None while that is not known."""
        buffer = self._buffer
        length, start = buffer[1] & _LENGTH, _MIN_HEADER_BYTES
        if length > _MAX_CONTROL_BYTES:
            start, smallest, largest = (
                (4, _MAX_CONTROL_BYTES + 1, _MAX_MEDIUM)
                if length == _MAX_CONTROL_BYTES + 1
                else (10, _MAX_MEDIUM + 1, _MAX_LONG)
            )
            if len(buffer) < start:
                return None
            length = int.from_bytes(buffer[2:start])
            if not smallest <= length <= largest:
                raise InvalidFrameError(1002)
        if opcode < Opcode.CLOSE and length + (self._message_bytes or 0) > self._max_message_bytes:
            raise InvalidFrameError(1009)
        start += _MASK_BYTES
        return start, start + length


def _unmasked(payload: bytearray, mask: bytearray) -> bytes:
    length = len(payload)
    repeated = (mask * (length // _MASK_BYTES + 1))[:length]
    return (int.from_bytes(payload) ^ int.from_bytes(repeated)).to_bytes(length)


def _check_close(payload: bytes) -> None:
    if not payload:
        return
    if len(payload) == 1 or code_of_close(payload) not in _CLOSE_CODES:
        raise InvalidFrameError(1002)
    try:
        payload[2:].decode()
    except UnicodeDecodeError:
        raise InvalidFrameError(1007) from None


def code_of_close(payload: bytes) -> int:
    """Of a close frame with this payload."""
    return int.from_bytes(payload[:2]) if payload else NO_CLOSE_CODE
