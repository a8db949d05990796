"""A WebSocket straight on its transport, from the answered upgrade to the last byte.

What always holds:

1. A write is one call of the transport, whatever its number of frames, and never waits. While the
   transport holds more than `HIGH_WATER_BYTES`, `writable` is False.
2. Each frame that comes, of whatever kind, is put to the listener's account, and the event loop
   turns after a few of them, so that no flood holds up the others for long. Meanwhile nothing is
   read.
3. After an invalid frame nothing of the peer's is parsed any more.
"""

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from services.websocket_service.deflate import MessageTooBigError, inflated
from services.websocket_service.inbound import (
    FrameParser,
    InboundFrame,
    InvalidFrameError,
    Opcode,
    code_of_close,
)
from services.websocket_service.outbound import OutboundFrame
from services.websocket_service.protocols import SocketListenerProtocol

HIGH_WATER_BYTES: Final = 32_768
MAX_FRAMES_PER_TURN: Final = 100
# A peer that is refused, or told to go, may have this many on the way. Of more, its answer to our
# close frame is not found any more.
MAX_UNHEARD_FRAMES: Final = 2_000
# For a peer that acknowledges what is unsent and does not take it.
CLOSING_S: Final = 2.0


class WebSocketWire(asyncio.Protocol):
    """A `SocketProtocol` on a transport of which somebody else has read the upgrade.

    `answer` writes the response to the upgrade, given the subprotocol, and then calls `take_over`.
    """

    __slots__ = (
        "_answer",
        "_close_code",
        "_fragments",
        "_gone",
        "_has_closed",
        "_is_compressed",
        "_is_deaf",
        "_is_lost",
        "_is_one_too_many",
        "_is_text_compressed",
        "_listener",
        "_loop",
        "_max_message_bytes",
        "_parser",
        "_pongs",
        "_transport",
        "_turn",
        "_unheard_frames",
        "last_heard_at",
        "taken_over",
        "writable",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        answer: Callable[[str | None], Awaitable[None]],
        *,
        max_message_bytes: int,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._answer = answer
        self._listener: SocketListenerProtocol | None = None
        self._parser = FrameParser(max_message_bytes=max_message_bytes)
        self.taken_over = False
        self._is_compressed = False
        self._max_message_bytes = max_message_bytes
        self._is_text_compressed = False
        # Of a text that has not come whole.
        self._fragments: bytearray | None = None
        self._turn: asyncio.Handle | None = None
        self._is_deaf = False
        self._is_one_too_many = False
        self._is_lost = False
        self._has_closed = False
        self._unheard_frames = 0
        self._pongs: list[bytes] = []
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self._close_code: int | None = None
        self.writable = True
        self.last_heard_at: float = self._loop.time()

    def take_over(self, *, compressed: bool = False) -> None:
        """Become the transport's protocol; `compressed`: both sides have agreed on `deflate`."""
        self.taken_over = True
        self._is_compressed = self._parser.may_be_compressed = compressed
        self._transport.set_protocol(self)
        self._transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)

    # What the session does

    async def accept(self, subprotocol: str | None) -> None:
        if not self.taken_over and not self._gone.done():
            await self._answer(subprotocol)

    def listen(self, listener: SocketListenerProtocol | None) -> None:
        self._listener = listener
        if listener is not None and self._gone.done():
            listener.on_gone(self._close_code)

    def write(self, frames: Sequence[OutboundFrame]) -> None:
        if self._is_compressed:
            self._write(b"".join([frame.deflated for frame in frames]))
        elif len(frames) == 1:
            self._write(frames[0].wire)
        else:
            self._write(b"".join([frame.wire for frame in frames]))

    def ping(self) -> None:
        self._write(_control(Opcode.PING))

    def close(self, code: int, reason: str) -> None:
        if self._has_closed:
            return
        self._has_closed = True
        self._write(_control(Opcode.CLOSE, code.to_bytes(2) + reason.encode()))
        if self._is_deaf and self._transport.can_write_eof() and not self._transport.is_closing():
            # Its close frame can't be recognised any more, its hang-up can.
            self._transport.write_eof()

    async def gone(self) -> None:
        await asyncio.shield(self._gone)

    def abort(self) -> None:
        # asyncio's transport, once closed with something unsent and then lost, fails at it.
        if not self._is_lost:
            self._transport.abort()

    def finish(self) -> None:
        """Nothing more will be written: let go of the connection, at once or soon."""
        if not self._is_lost:
            self._transport.close()
            # Closing waits for a peer to take what is unsent.
            self._loop.call_later(CLOSING_S, self.abort)

    def _write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    # What the transport does

    def pause_writing(self) -> None:
        """The peer, or the network, does not keep up."""
        self.writable = False
        if self._listener is not None:
            self._listener.on_paused()

    def resume_writing(self) -> None:
        """Most of what was held is written."""
        self.writable = True
        self._write_pongs()
        if self._listener is not None:
            self._listener.on_writable()

    def data_received(self, data: bytes) -> None:
        """Parse it, tell the listener, and answer pings."""
        self.last_heard_at = self._loop.time()
        if self._is_deaf:
            return
        self._parser.feed(data)
        if self._turn is None:
            self._parse()

    def eof_received(self) -> None:
        """The transport closes itself."""
        self._left(None)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's name
        """Tell everybody who waits for the end."""
        self._is_lost = True
        self._left(None)

    def lost(self) -> None:
        """The connection has ended before it was taken over."""
        self._left(None)

    # What the peer says

    def _parse(self) -> None:
        try:
            for _ in range(MAX_FRAMES_PER_TURN):
                frame = None if self._is_deaf else self._parser.next_frame()
                if frame is None:
                    self._read_on()
                    break
                self._on_frame(frame)
            else:
                self._parse_on()
        except InvalidFrameError as error:
            self._read_on()
            self._violates(error.close_code)
        self._write_pongs()

    def _parse_on(self) -> None:
        if self._turn is None and not self._transport.is_closing():
            self._transport.pause_reading()
        self._turn = self._loop.call_soon(self._parse)

    def _read_on(self) -> None:
        if self._turn is not None:
            self._turn = None
            if not self._transport.is_closing():
                self._transport.resume_reading()

    def _on_frame(self, frame: InboundFrame) -> None:
        if self._listener is None or self._is_one_too_many or not self._listener.on_frame():
            self._is_one_too_many = True
            self._unheard_frames += 1
            self._is_deaf = self._unheard_frames > MAX_UNHEARD_FRAMES
        match frame.opcode:
            case Opcode.PING:
                self._on_ping(frame.payload)
            case Opcode.PONG:
                pass
            case Opcode.CLOSE:
                self._on_close(frame.payload)
            case _:
                self._on_data(frame)

    def _on_data(self, frame: InboundFrame) -> None:
        if self._listener is None or self._is_one_too_many:
            self._fragments = None
        elif frame.opcode is Opcode.BINARY:
            self._listener.on_message(frame.payload)
        elif frame.opcode is Opcode.TEXT:
            self._is_text_compressed = frame.is_compressed
            if frame.is_final:
                self._on_text(frame.payload)
            else:
                self._fragments = bytearray(frame.payload)
        elif self._fragments is not None:
            self._fragments += frame.payload
            if frame.is_final:
                text, self._fragments = self._fragments, None
                self._on_text(text)

    def _on_ping(self, payload: bytes) -> None:
        if not self.writable:
            # A peer that asks and does not read gets the last answer alone, when it does again.
            self._pongs.clear()
        self._pongs.append(_control(Opcode.PONG, payload))

    def _write_pongs(self) -> None:
        if self._pongs and self.writable:
            if not self._has_closed:
                self._write(b"".join(self._pongs))
            self._pongs.clear()

    def _on_close(self, payload: bytes) -> None:
        self._write_pongs()
        if not self._has_closed:
            self._has_closed = True
            self._write(_control(Opcode.CLOSE, payload))
        self._left(code_of_close(payload))

    def _on_text(self, data: bytes | bytearray) -> None:
        try:
            if self._is_text_compressed:
                data = inflated(data, max_bytes=self._max_message_bytes)
            text = data.decode()
        except MessageTooBigError:
            self._violates(1009)
            return
        except zlib.error:
            self._violates(1002)
            return
        except UnicodeDecodeError:
            self._violates(1007)
            return
        if self._listener is not None:
            self._listener.on_message(text)

    def _violates(self, code: int) -> None:
        self._is_deaf = True
        if self._listener is not None:
            self._listener.on_violation(code)

    def _left(self, close_code: int | None) -> None:
        if self._gone.done():
            return
        self._gone.set_result(None)
        self._close_code = close_code
        self._is_deaf = True
        if self._listener is not None:
            self._listener.on_gone(close_code)


def _control(opcode: Opcode, payload: bytes = b"") -> bytes:
    """A control frame; its payload has at most 125 bytes."""
    return bytes((0x80 | opcode, len(payload))) + payload
