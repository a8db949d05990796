"""Bytes into frames."""

import itertools
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame
from websockets.frames import Opcode as WebSocketsOpcode
from websockets.protocol import OPEN, SERVER, Protocol

from services.websocket_service.inbound import (
    FrameParser,
    InboundFrame,
    InvalidFrameError,
    Opcode,
)
from services.websocket_service.tests.wire.client_frames import (
    MAX_MESSAGE_BYTES,
    VIOLATIONS,
    close,
    frame,
)

Parsed = tuple[list[InboundFrame], int | None]

controls = st.builds(
    Frame,
    st.sampled_from([WebSocketsOpcode.PING, WebSocketsOpcode.PONG]),
    st.binary(max_size=125),
)


@st.composite
def messages(draw: st.DrawFn) -> list[Frame]:
    """A message in any number of frames, with control frames in between."""
    opcode = draw(st.sampled_from([WebSocketsOpcode.TEXT, WebSocketsOpcode.BINARY]))
    parts = draw(st.lists(st.binary(max_size=200), min_size=1, max_size=5))
    frames = []
    for n, part in enumerate(parts):
        is_final = n == len(parts) - 1
        frames.append(Frame(WebSocketsOpcode.CONT if n else opcode, part, is_final))
        frames += draw(st.lists(controls, max_size=2))
    return frames


conversations = st.lists(messages(), max_size=5).map(lambda each: list(itertools.chain(*each)))


@st.composite
def slices(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """The same bytes in any number of pieces."""
    cuts = draw(st.lists(st.integers(0, len(data)), max_size=20).map(sorted))
    return [data[start:end] for start, end in itertools.pairwise([0, *cuts, len(data)])]


def parsed(pieces: Iterable[bytes]) -> Parsed:
    """The frames up to the first that is invalid, and the close code for that one."""
    parser = FrameParser(max_message_bytes=MAX_MESSAGE_BYTES)
    frames: list[InboundFrame] = []
    try:
        for piece in pieces:
            parser.feed(piece)
            frames += all_frames(parser)
    except InvalidFrameError as error:
        return frames, error.close_code
    return frames, None


def all_frames(parser: FrameParser) -> Iterator[InboundFrame]:
    while (each := parser.next_frame()) is not None:
        yield each


def parsed_one_by_one(data: bytes) -> Parsed:
    return parsed(data[n : n + 1] for n in range(len(data)))


@given(conversation=conversations, data=st.data())
def test_frames_come_out_as_they_went_in(conversation: list[Frame], data: st.DataObject) -> None:
    """However a client fragments its messages, and the network the bytes, frames stay the same."""
    serialized = b"".join(each.serialize(mask=True) for each in conversation)
    frames, code = parsed(data.draw(slices(serialized)))
    assert code is None
    assert [(each.opcode.value, each.payload, each.is_final) for each in frames] == [
        (each.opcode.value, each.data, each.fin) for each in conversation
    ]


@given(conversation=conversations)
def test_websockets_says_the_same(conversation: list[Frame]) -> None:
    """What the library makes of a conversation, the parser does, too."""
    serialized = b"".join(each.serialize(mask=True) for each in conversation)
    library = Protocol(SERVER, state=OPEN, max_size=None)
    library.receive_data(serialized)
    frames, _ = parsed([serialized])
    assert [(each.opcode.value, each.payload) for each in frames] == [
        (event.opcode.value, event.data)
        for event in library.events_received()
        if isinstance(event, Frame)
    ]


@given(
    serialized=st.one_of(
        st.binary(max_size=300),
        st.builds(
            lambda frames, tail: b"".join(each.serialize(mask=True) for each in frames) + tail,
            conversations,
            st.binary(max_size=30),
        ),
    ),
    data=st.data(),
)
def test_slices_make_no_difference(serialized: bytes, data: st.DataObject) -> None:
    """Of any bytes the same is made, whether they come at once, in pieces or one by one."""
    at_once = parsed([serialized])
    assert parsed(data.draw(slices(serialized))) == at_once
    assert parsed_one_by_one(serialized) == at_once


@pytest.mark.parametrize(
    ("data", "code"),
    [(data, code) for name, (data, code) in VIOLATIONS.items() if code != 1007 or "close" in name],
    ids=[name for name, (_, code) in VIOLATIONS.items() if code != 1007 or "close" in name],
)
def test_violation(data: bytes, code: int) -> None:
    """Each kind of invalid frame has its close code, however its bytes come."""
    assert parsed([data])[1] == code
    assert parsed_one_by_one(data)[1] == code


def test_size_is_that_of_the_message() -> None:
    """A message of the largest size may come in parts, with control frames in between."""
    half = b"x" * (MAX_MESSAGE_BYTES // 2)
    data = [
        frame(WebSocketsOpcode.TEXT, half, fin=False),
        frame(WebSocketsOpcode.CONT, half, fin=False),
        frame(WebSocketsOpcode.PING, b"x" * 125),
        frame(WebSocketsOpcode.CONT, b"", fin=True),
        frame(WebSocketsOpcode.TEXT, half * 2),
    ]
    frames, code = parsed(data)
    assert len(frames) == len(data)
    assert code is None


@pytest.mark.parametrize("code", [1000, 1001, 1003, 1007, 1011, 1012, 1014, 3000, 4999])
def test_close_within_a_message(code: int) -> None:
    """A client may leave in the middle of a message, with any code that may be sent."""
    frames, violation = parsed([frame(WebSocketsOpcode.TEXT, b"x", fin=False), close(code)])
    assert frames[-1].opcode is Opcode.CLOSE
    assert violation is None
