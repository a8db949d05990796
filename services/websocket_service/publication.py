"""What was published, decoded at most once however many connections it goes to."""

import json
import re
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from huleedu_service_libs.notification_ids import NotificationId
from huleedu_service_libs.notifications import MAX_KEY_BYTES
from huleedu_service_libs.payload import Payload
from services.websocket_service.continuity import Link

_TYPE = '{"type":"notification"'
# As the library writes it, to the byte: what merely has fields of these names is a raw payload.
_ID = rb"(?:0|[1-9][0-9]{0,14})-(?:0|[1-9][0-9]{0,18})"
# A byte takes at most six in JSON. Without a bound, 16 MB that look like a key would take 3 GB.
_HEAD = re.compile(
    rb'\{(?:"id":"(?P<id>%b)","prev":(?:null|"(?P<prev>%b)"),)?'
    rb'(?:"collapse_key":"(?P<collapse_key>(?:[^"\\]|\\.){1,%d})",)?'
    % (_ID, _ID, 6 * MAX_KEY_BYTES)
)


class Publication(Payload):
    """A payload with what the connections need of it, each computed on first use and kept."""

    @cached_property
    def text(self) -> str | None:
        """The payload as text, exactly; None where it is not UTF-8: no text frame can hold it."""
        try:
            return self.decode()
        except UnicodeDecodeError:
            return None

    @cached_property
    def notification(self) -> str | None:
        """The v1 frame: the object with `type` in front; None where it is no JSON object."""
        fields = self._object
        if fields is None or self.text is None:
            return None
        if "type" in fields:
            # Two fields of one name: parsers take the last, and the frame would lose its type.
            return _written_anew(fields)
        if not fields:
            return _TYPE + "}"
        return f"{_TYPE},{self.text.lstrip()[1:]}"

    @cached_property
    def link(self) -> Link | None:
        """The place in its user's chain; None for what is not durable."""
        id_ = self._head["id"]
        if id_ is None:
            return None
        prev = self._head["prev"]
        return Link(NotificationId(id_.decode()), NotificationId(prev.decode()) if prev else None)

    @cached_property
    def collapse_key(self) -> bytes | None:
        """As it is written in JSON; a newer publication with the same key replaces this one."""
        return self._head["collapse_key"]

    @cached_property
    def _head(self) -> dict[str, bytes | None]:
        head = _HEAD.match(self)
        return head.groupdict() if head else {"id": None, "prev": None, "collapse_key": None}

    @cached_property
    def trace_context(self) -> dict[str, Any] | None:
        """`metadata`, where it holds a W3C traceparent."""
        # Most payloads carry none: look before parsing.
        if self.find(b'"traceparent"') < 0 or self._object is None:
            return None
        metadata = self._object.get("metadata")
        if isinstance(metadata, dict) and isinstance(metadata.get("traceparent"), str):
            return metadata
        return None

    @cached_property
    def published_at(self) -> float | None:
        """Seconds since the epoch, from `timestamp` or an envelope's `event_timestamp`."""
        if self.find(b'timestamp"') < 0 or self._object is None:
            return None
        for name in ("timestamp", "event_timestamp"):
            value = self._object.get(name)
            if isinstance(value, str):
                try:
                    at = datetime.fromisoformat(value)
                    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
                except (ValueError, OverflowError):
                    return None
        return None

    @cached_property
    def _object(self) -> dict[str, Any] | None:
        try:
            value = json.loads(self.text or "", parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) else None


def _written_anew(fields: dict[str, Any]) -> str | None:
    others = {name: value for name, value in fields.items() if name != "type"}
    try:
        # In ASCII: half a surrogate pair can be escaped in JSON, and no UTF-8 can hold it.
        return json.dumps(
            {"type": "notification", **others}, allow_nan=False, separators=(",", ":")
        )
    except (ValueError, RecursionError):
        # 1e999, which Python reads as infinity, can't be written back.
        return None


def _refuse_constant(constant: str) -> None:
    # NaN and Infinity: Python reads them, browsers do not.
    raise ValueError(constant)
