"""What was published, made into frames at most once however many connections it goes to."""

import json
import re
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import orjson

from huleedu_service_libs import strict_json
from huleedu_service_libs.notification_ids import NotificationId
from huleedu_service_libs.notifications import MAX_KEY_BYTES
from huleedu_service_libs.payload import Payload
from services.websocket_service.continuity import Link
from services.websocket_service.frames import Dialect
from services.websocket_service.outbound import OutboundFrame

_TYPE: Final = b'{"type":"notification"'
_TYPE_AND_MORE: Final = _TYPE + b","
# As the library writes it, to the byte: what merely has fields of these names is a raw payload.
_ID = rb"(?:0|[1-9][0-9]{0,14})-(?:0|[1-9][0-9]{0,18})"
# A byte takes at most six in JSON. Without a bound, 16 MB that look like a key would take 3 GB.
_HEAD: Final = re.compile(
    rb'\{(?:"id":"(%b)","prev":(?:null|"(%b)"),)?'
    rb'(?:"collapse_key":"((?:[^"\\]|\\.){1,%d})",)?'
    rb'(?:"timestamp":"([0-9T:.+-]{1,40})",)?' % (_ID, _ID, 6 * MAX_KEY_BYTES)
)
_HEADS: Final = (b'{"id":"', b'{"collapse_key":"')
_TRACEPARENT: Final = b'"traceparent"'
# https://www.w3.org/TR/trace-context/#trace-flags: the last bit says whether it is recorded.
_UNSAMPLED: Final = re.compile(
    rb'"traceparent"\s*:\s*"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f][02468ace]"'
)


_NOT_MADE: Final = OutboundFrame(b"", 0.0)


class Publication(Payload):
    """A payload with what the connections need of it, each computed on first use and kept."""

    is_replayed = False
    """True where it comes out of the history, so that its age says nothing of the delivery."""
    _is_head_read = False
    _link: Link | None = None
    _collapse_key: bytes | None = None
    _timestamp: bytes | None = None
    _plain_frame: OutboundFrame | None = _NOT_MADE
    _typed_frame: OutboundFrame | None = _NOT_MADE

    @property
    def link(self) -> Link | None:
        """The place in its user's chain; None for what is not durable."""
        if not self._is_head_read:
            self._read_head()
        return self._link

    @property
    def collapse_key(self) -> bytes | None:
        """As it is written in JSON; a newer publication with the same key replaces this one."""
        if not self._is_head_read:
            self._read_head()
        return self._collapse_key

    def _read_head(self) -> None:
        """Read what the library writes in front of an object's own fields."""
        self._is_head_read = True
        match = _HEAD.match(self) if self.startswith(_HEADS) else None
        if match is not None:
            id_, prev, self._collapse_key, self._timestamp = match.groups()
            if id_ is not None:
                self._link = Link(
                    NotificationId(id_.decode()),
                    NotificationId(prev.decode()) if prev is not None else None,
                )

    def frame(self, dialect: Dialect) -> OutboundFrame | None:
        """What a connection of the dialect gets; None where the dialect can't carry it.

        Plain: the payload as it is, which must be UTF-8. v1: the object with `type` in front.
        """
        if dialect is Dialect.PLAIN:
            frame = self._plain_frame
            if frame is _NOT_MADE:
                frame = self._plain_frame = self._made(self if self._is_text else None)
        else:
            frame = self._typed_frame
            if frame is _NOT_MADE:
                frame = self._typed_frame = self._made(self._typed() if self._is_text else None)
        return frame

    @property
    def _is_text(self) -> bool:
        if self.isascii():
            return True
        try:
            self.decode()
        except UnicodeDecodeError:
            return False
        return True

    def _made(self, text: bytes | None) -> OutboundFrame | None:
        if text is None:
            return None
        received_at = self.received_at
        frame = OutboundFrame(text, received_at, self.collapse_key)
        frame.payload_bytes = len(self)
        if not self.is_replayed:
            frame.published_at = received_at
            timestamp = _seconds(self._timestamp) if self._timestamp is not None else None
            if timestamp is not None:
                # Two hosts' clocks may disagree: nothing was published after it came.
                at = time.monotonic() - (time.time() - timestamp)
                frame.published_at = min(at, received_at)
        if self.find(_TRACEPARENT) >= 0:
            frame.trace_context = self.trace_context
        return frame

    def _typed(self) -> bytes | None:
        if self.link is not None:
            # The library has written it, or the chain would break: nothing has to be parsed.
            return _TYPE_AND_MORE + self[1:]
        fields = _fields(self)
        if fields is None:
            return None
        if "type" in fields:
            # Two fields of one name: parsers take the last, and the frame would lose its type.
            return _written_anew(self)
        if not fields:
            return _TYPE + b"}"
        return _TYPE_AND_MORE + self.lstrip()[1:]

    @property
    def trace_context(self) -> Mapping[str, Any] | None:
        """`metadata`, where it holds a W3C traceparent of a trace that is recorded."""
        # Most payloads carry none, or one that nobody records: look before parsing.
        if self.count(_TRACEPARENT) == len(_UNSAMPLED.findall(self)):
            return None
        fields = _fields(self)
        metadata = fields.get("metadata") if fields is not None else None
        if isinstance(metadata, dict) and isinstance(metadata.get("traceparent"), str):
            return metadata
        return None


def _seconds(timestamp: bytes) -> float | None:
    try:
        at = datetime.fromisoformat(timestamp.decode())
        return at.timestamp() if at.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None


def _fields(text: bytes) -> dict[str, Any] | None:
    try:
        # It takes no subclass of bytes.
        value = orjson.loads(memoryview(text))
    except orjson.JSONDecodeError:
        # It also refuses what browsers read: half a surrogate pair in an escape, 1e999.
        try:
            # Of bytes it would read UTF-16 too, and what begins with a byte order mark.
            value = strict_json.loads(text.decode())
        except ValueError:
            return None
    return value if isinstance(value, dict) else None


def _written_anew(text: bytes) -> bytes | None:
    # Not with orjson, which turns numbers beyond 64 bits into floats.
    try:
        fields = strict_json.loads(text.decode())
        others = {name: value for name, value in fields.items() if name != "type"}
        # In ASCII: half a surrogate pair can be escaped in JSON, and no UTF-8 can hold it.
        return json.dumps(
            {"type": "notification", **others}, allow_nan=False, separators=(",", ":")
        ).encode()
    except (ValueError, RecursionError):
        # 1e999, which Python reads as infinity, can't be written back.
        return None
