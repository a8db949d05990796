"""Frames as clients write them, right and wrong, for all tests of what is made of them."""

import struct

from websockets.frames import Frame, Opcode

MAX_MESSAGE_BYTES = 1000


def frame(opcode: Opcode, payload: bytes = b"", *, fin: bool = True) -> bytes:
    """A frame that RFC 6455 allows, with a random mask."""
    return Frame(opcode, payload, fin).serialize(mask=True)


def raw(first: int, length: bytes, payload: bytes = b"", *, masked: bool = True) -> bytes:
    """Bytes that no library would write; the mask is all zeros."""
    mask = bytes(4) if masked else b""
    return bytes((first, length[0] | 0x80 * masked)) + length[1:] + mask + payload


def close(code: int, reason: bytes = b"") -> bytes:
    payload = struct.pack("!H", code) + reason
    return raw(0x88, bytes((len(payload),)), payload)


_TOO_MUCH = MAX_MESSAGE_BYTES + 1
_TOO_MUCH_HEADER = b"\x7e" + struct.pack("!H", _TOO_MUCH)
VIOLATIONS: dict[str, tuple[bytes, int]] = {
    "unmasked": (raw(0x81, b"\x01", b"x", masked=False), 1002),
    "reserved bit 1": (raw(0xC1, b"\x01", b"x"), 1002),
    "reserved bit 2": (raw(0xA1, b"\x01", b"x"), 1002),
    "reserved bit 3": (raw(0x99, b"\x01", b"x"), 1002),
    **{f"opcode {n}": (raw(0x80 | n, b"\x00"), 1002) for n in (*range(3, 8), *range(11, 16))},
    "fragmented ping": (raw(0x09, b"\x00"), 1002),
    "fragmented close": (raw(0x08, b"\x00"), 1002),
    "long ping": (raw(0x89, b"\x7e\x00\x7e", b"x" * 126), 1002),
    "ping of an empty long form": (raw(0x89, b"\x7f" + bytes(8)), 1002),
    "continuation of nothing": (frame(Opcode.CONT, b"x"), 1002),
    "text within a text": (frame(Opcode.TEXT, b"x", fin=False) + frame(Opcode.TEXT, b"x"), 1002),
    "binary within a text": (frame(Opcode.TEXT, fin=False) + frame(Opcode.BINARY), 1002),
    "length of a wrong form": (raw(0x81, b"\x7e\x00\x01", b"x"), 1002),
    "length of a wrong long form": (raw(0x81, b"\x7f" + struct.pack("!Q", 65_535)), 1002),
    "length of 2^63": (raw(0x81, b"\x7f" + struct.pack("!Q", 1 << 63)), 1002),
    "close of one byte": (raw(0x88, b"\x01", b"x"), 1002),
    **{
        f"close {code}": (close(code), 1002)
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_535)
    },
    "close reason": (close(1000, b"\xff"), 1007),
    "text": (frame(Opcode.TEXT, b"\xff"), 1007),
    "cut off": (frame(Opcode.TEXT, b"x\xc3"), 1007),
    "half a pair": (frame(Opcode.TEXT, b"\xed\xa0\x80"), 1007),
    "overlong": (frame(Opcode.TEXT, b"\xc0\xaf"), 1007),
    "beyond Unicode": (frame(Opcode.TEXT, b"\xf4\x90\x80\x80"), 1007),
    "split": (frame(Opcode.TEXT, b"\xc3", fin=False) + frame(Opcode.CONT, b"\xc3"), 1007),
    "big text": (frame(Opcode.TEXT, b"x" * _TOO_MUCH), 1009),
    "big binary": (frame(Opcode.BINARY, b"x" * _TOO_MUCH), 1009),
    "big by its header alone": (raw(0x81, _TOO_MUCH_HEADER), 1009),
    "length of 2^63 - 1": (raw(0x81, b"\x7f" + struct.pack("!Q", (1 << 63) - 1)), 1009),
    "big in parts": (
        frame(Opcode.TEXT, b"x" * 600, fin=False)
        + frame(Opcode.PING, b"x" * 125)
        + frame(Opcode.CONT, b"x" * 401, fin=False),
        1009,
    ),
}
"""What a client must not send, and the close code that it deserves. Text is judged by the wire."""
