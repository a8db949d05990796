"""Compressed messages, and what is agreed on with those who offer them."""

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.websocket_service.deflate import (
    MIN_BYTES,
    MessageTooBigError,
    deflated,
    inflated,
)
from services.websocket_service.extension_offers import accepted
from services.websocket_service.outbound import OutboundFrame

AGREED = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"


@given(text=st.binary(max_size=5000))
def test_round_trip(text: bytes) -> None:
    """What is compressed comes back as it was."""
    assert inflated(deflated(text), max_bytes=len(text)) == text


@given(text=st.binary(min_size=1, max_size=2000), level=st.integers(0, 9))
def test_client_of_its_own_taste(text: bytes, level: int) -> None:
    """A message may be compressed as well or as badly as a client likes."""
    compressor = zlib.compressobj(level, wbits=-15)
    data = compressor.compress(text) + compressor.flush(zlib.Z_SYNC_FLUSH)
    assert inflated(data.removesuffix(b"\x00\x00\xff\xff"), max_bytes=2000) == text


def test_blocks_after_the_last_one() -> None:
    """A client may end its stream in the middle of a message and begin another."""
    first, second = zlib.compressobj(wbits=-15), zlib.compressobj(wbits=-15)
    data = first.compress(b"one ") + first.flush(zlib.Z_FINISH)
    data += second.compress(b"two") + second.flush(zlib.Z_SYNC_FLUSH)
    assert inflated(data.removesuffix(b"\x00\x00\xff\xff"), max_bytes=7) == b"one two"


@pytest.mark.parametrize("excess", [1, 1000, 100_000_000])
def test_bomb(excess: int) -> None:
    """A small message that would inflate to a huge one is refused, not unpacked."""
    with pytest.raises(MessageTooBigError):
        inflated(deflated(b"\x00" * (1000 + excess)), max_bytes=1000)


@given(data=st.binary(max_size=200))
def test_any_bytes_have_an_outcome(data: bytes) -> None:
    """Whatever comes as a compressed message, the outcome is bounded or one of two errors."""
    try:
        message = inflated(data, max_bytes=100)
    except (MessageTooBigError, zlib.error):
        return
    assert len(message) <= 100


@pytest.mark.parametrize(
    ("offers", "answer"),
    [
        ("permessage-deflate", AGREED),
        ("permessage-deflate; client_max_window_bits", AGREED),
        ("permessage-deflate; server_no_context_takeover", AGREED),
        ("x-unknown, permessage-deflate", AGREED),
        ("permessage-deflate; server_max_window_bits=12", f"{AGREED}; server_max_window_bits=12"),
        ("permessage-deflate; server_max_window_bits=9, permessage-deflate", AGREED),
        ("permessage-deflate; server_max_window_bits=9", None),
        ("permessage-deflate; server_max_window_bits", None),
        ("permessage-deflate; unknown", None),
        ("x-unknown", None),
        (";;", None),
        ("", None),
    ],
)
def test_offers(offers: str, answer: str | None) -> None:
    """Of a client's offers the first is taken that needs nothing kept between messages."""
    assert accepted(offers) == answer


@pytest.mark.parametrize("length", [0, 1, 125, 126, 127, 65_535, 65_536])
def test_frame_lengths(length: int) -> None:
    """A frame of any length says how long it is, compressed or not."""
    text = b"x" * length
    frame = OutboundFrame(text, 0.0)
    assert frame.text == text
    assert frame.wire.endswith(text)
    assert len(frame.wire) - length == (2 if length < 126 else 4 if length < 65_536 else 10)
    if length < MIN_BYTES:
        assert frame.deflated is frame.wire
    else:
        assert frame.deflated[0] == 0xC1
        assert len(frame.deflated) < length


def test_incompressible_text_stays_as_it_is() -> None:
    """What compression would make longer is sent without."""
    frame = OutboundFrame(bytes(range(256)), 0.0)
    assert frame.deflated is frame.wire
    assert frame.deflated is frame.deflated
