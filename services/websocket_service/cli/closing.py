"""What a client does about a close code: the table of the wire protocol, from the other side."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from services.websocket_service.close_reasons import CLOSE_REASONS, Reconnect

_ENDING = {Reconnect.NEW_TOKEN, Reconnect.STOP, Reconnect.NOT_BY_ITSELF, Reconnect.NOT_REPEAT}
_ENDING_CODES = {reason.code for reason in CLOSE_REASONS if reason.reconnect in _ENDING}
_RETRY_AFTER_CODES = {
    reason.code for reason in CLOSE_REASONS if reason.reconnect is Reconnect.AFTER_DELAY
}
_NEW_TOKEN_ERRORS = {
    reason.error_code for reason in CLOSE_REASONS if reason.reconnect is Reconnect.NEW_TOKEN
}
# A day: more is a mistake, and asyncio can't wait for infinity.
_MAX_RETRY_AFTER_S = 86_400.0
_NORMAL_CLOSURE = 1000

_ADVICE = {
    "AUTHENTICATION_ERROR": "get a new token with `websocket-service token --user …`",
    "AUTHORIZATION_ERROR": "use a token of the right user",
    "QUOTA_EXCEEDED": "close another connection of this user first",
}
_NO_ADVICE = "the service's log says more"


@dataclass(frozen=True, slots=True)
class Closing:
    """One connection's end: `code` as in RFC 6455, `reason` as it came.

    `error` is that of the `error` frame before it: its message is whole, where the one in
    `reason` is cut to what a close frame holds.
    """

    code: int
    reason: str
    error: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ends_tail(self) -> bool:
        """True where another attempt would end the same way."""
        return self.code in _ENDING_CODES

    @property
    def needs_token(self) -> bool:
        """True where another attempt with a new token may end otherwise."""
        return self.ends_tail and self._error_code in _NEW_TOKEN_ERRORS

    @property
    def is_normal(self) -> bool:
        """True where the service has nothing more to say."""
        return self.code == _NORMAL_CLOSURE

    @property
    def retry_after_s(self) -> float | None:
        """Seconds that the service asked to wait; None where it did not ask."""
        milliseconds = self._fields().get("retry_after_ms")
        if (
            self.code not in _RETRY_AFTER_CODES
            or isinstance(milliseconds, bool)
            or not isinstance(milliseconds, int | float)
            or math.isnan(milliseconds)
            or milliseconds < 0
        ):
            return None
        return min(milliseconds / 1000, _MAX_RETRY_AFTER_S)

    @property
    def description(self) -> str:
        """`1008 AUTHENTICATION_ERROR, Token has expired`, as much of it as is known."""
        message = self.error.get("message") or self._fields().get("message")
        known = ", ".join(str(part) for part in (self._error_code, message) if part)
        return f"{self.code} {known or self.reason}".rstrip()

    @property
    def advice(self) -> str:
        """What the user can do about an end that is final."""
        advice = _ADVICE.get(str(self._error_code), _NO_ADVICE)
        details = self.error.get("details")
        if isinstance(details, dict) and details.get("reason") == "invalid_signature":
            return f"{advice}, and check that JWT_SECRET_KEY is the service's"
        return advice

    @property
    def _error_code(self) -> object:
        return self.error.get("code") or self._fields().get("error_code")

    def _fields(self) -> dict[str, object]:
        try:
            fields = json.loads(self.reason)
        except ValueError:
            return {}
        return fields if isinstance(fields, dict) else {}
