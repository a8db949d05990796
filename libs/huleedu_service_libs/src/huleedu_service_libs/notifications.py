"""A notification before it is published: what it holds, what is refused, how it is written."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, NoReturn
from uuid import UUID

from pydantic_core import PydanticSerializationError, to_jsonable_python

from huleedu_service_libs.error_handling import raise_validation_error
from huleedu_service_libs.notification_ids import NotificationId
from huleedu_service_libs.observability import inject_trace_context

MAX_KEY_BYTES: Final = 256
MAX_EXPIRY_S: Final = 10 * 365 * 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Notification:
    """What a service tells a user.

    `data` may hold values that pydantic can serialise (UUID, datetime, enum, model).
    """

    user_id: str
    event_type: str
    data: Mapping[str, Any] = field(repr=False)
    durable: bool = True
    """Kept in the user's history and replayed to clients that were away; else at most once."""
    idempotency_key: str | None = None
    """Of all notifications of the user with this key, only the first is published."""
    collapse_key: str | None = None
    """A newer one with this key replaces this one wherever it still waits."""
    expires_in_s: float | None = None
    """Seconds after which it is not replayed any more."""
    correlation_id: str | UUID | None = None
    source_service: str | None = None
    trace_context: Mapping[str, str] | None = field(default=None, repr=False)
    """W3C `traceparent` and `tracestate` to pass on; without it, those of the current span."""

    def encode(self, *, service: str, max_bytes: int) -> bytes:
        """The object to publish, as compact UTF-8 JSON without `id` and `prev`.

        `{"event", "data"}`, `collapse_key` in front and `correlation_id` and `source_service`
        behind where they are given, `metadata` with the W3C trace context where there is one. A
        durable one also has `timestamp` (now, UTC) before its event, and always a
        `source_service`: `service`, the caller's name.

        Raises HuleEduError (VALIDATION_ERROR) for whatever can't be published.
        """
        self._check(service)
        published: dict[str, Any] = {}
        if self.collapse_key is not None:
            published["collapse_key"] = self.collapse_key
        if self.durable:
            # Ahead of the publisher's own fields: readers find it without parsing.
            published["timestamp"] = datetime.now(UTC).isoformat(timespec="microseconds")
        published |= {"event": self.event_type, "data": dict(self.data)}
        if self.correlation_id is not None:
            published["correlation_id"] = str(self.correlation_id)
        source_service = self.source_service or (service if self.durable else None)
        if source_service is not None:
            published["source_service"] = source_service
        metadata: dict[str, str] = {}
        if self.trace_context is None:
            inject_trace_context(metadata)
        else:
            metadata |= self.trace_context
        if metadata:
            published["metadata"] = metadata
        encoded = _encode(published, service)
        if len(encoded) > max_bytes:
            _refuse(
                service,
                "data",
                f"the notification has {len(encoded)} bytes as JSON, the limit is {max_bytes}: "
                "publish an id by which the client can fetch the rest",
            )
        return encoded

    def _check(self, service: str) -> None:
        # Callers need not be type-checked.
        user_id: object = self.user_id
        event_type: object = self.event_type
        data: object = self.data
        expires_in_s: object = self.expires_in_s
        if not isinstance(user_id, str):
            _refuse(service, "user_id", f"user_id is {_type(user_id)}, expected text")
        if not isinstance(data, Mapping):
            _refuse(service, "data", f"data is {_type(data)}, expected an object")
        _text_bytes(service, "event_type", event_type)
        _check_key(service, "idempotency_key", self.idempotency_key)
        _check_key(service, "collapse_key", self.collapse_key)
        if not isinstance(self.correlation_id, UUID):
            _check_key(service, "correlation_id", self.correlation_id)
        _check_key(service, "source_service", self.source_service)
        if expires_in_s is not None and not _is_expiry(expires_in_s):
            _refuse(
                service, "expires_in_s", f"expires_in_s must be seconds in 0 < s <= {MAX_EXPIRY_S}"
            )
        if not self.durable:
            for name, value in (
                ("idempotency_key", self.idempotency_key),
                ("expires_in_s", expires_in_s),
            ):
                if value is not None:
                    _refuse(service, name, f"{name} needs a durable notification: durable=True")


def _is_expiry(value: object) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= MAX_EXPIRY_S
    )


def _check_key(service: str, name: str, value: object) -> None:
    if value is None:
        return
    size = _text_bytes(service, name, value)
    if size > MAX_KEY_BYTES:
        _refuse(service, name, f"{name} has {size} bytes, the limit is {MAX_KEY_BYTES}")


def _text_bytes(service: str, name: str, value: object) -> int:
    if not isinstance(value, str) or not value:
        _refuse(service, name, f"{name} must be a text that is not empty")
    try:
        return len(value.encode())
    except UnicodeEncodeError:
        _refuse(service, name, f"{name} has half a surrogate pair: no UTF-8")


def _encode(published: dict[str, Any], service: str) -> bytes:
    try:
        return json.dumps(
            published,
            allow_nan=False,
            default=to_jsonable_python,
            ensure_ascii=False,
            separators=(",", ":"),
        ).encode()
    except (TypeError, ValueError, RecursionError, PydanticSerializationError) as error:
        _refuse(service, "data", f"data can't be written as JSON: {error}")


def _type(value: object) -> str:
    return type(value).__name__


def _refuse(service: str, name: str, message: str) -> NoReturn:
    raise_validation_error(service, "publish_user_notification", name, message, None)


@dataclass(frozen=True, slots=True)
class NotificationReceipt:
    """What became of one notification."""

    id: NotificationId | None
    """None for one that is not durable; the first one's for a duplicate."""
    receivers: int
    """Processes that Redis handed it to; on a Cluster, of the publishing node."""
    duplicate: bool = False
    """True where its idempotency key was used before, and nothing was published."""
