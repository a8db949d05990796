"""What a client does about a close code: the table of the wire protocol, from the other side."""

import json
import math
from dataclasses import dataclass

_ENDING_CODES = frozenset({1003, 1008, 1009, 4000})
_RETRY_AFTER_CODES = frozenset({1012, 1013})
# A day: more is a mistake, and asyncio can't wait for infinity.
_MAX_RETRY_AFTER_S = 86_400.0
_NORMAL_CLOSURE = 1000

_ADVICE = {
    "AUTHENTICATION_ERROR": "get a new token with `websocket-service token --user …`, and check "
    "that JWT_SECRET_KEY is the service's",
    "AUTHORIZATION_ERROR": "use a token of the right user",
    "QUOTA_EXCEEDED": "close another connection of this user first",
}
_NO_ADVICE = "the service's log says more"


@dataclass(frozen=True, slots=True)
class Closing:
    """One connection's end: `code` as in RFC 6455, `reason` as it came."""

    code: int
    reason: str

    @property
    def ends_tail(self) -> bool:
        """True where another attempt would end the same way."""
        return self.code in _ENDING_CODES

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
        fields = self._fields()
        known = [str(fields[name]) for name in ("error_code", "message") if fields.get(name)]
        return f"{self.code} {', '.join(known) or self.reason}".rstrip()

    @property
    def advice(self) -> str:
        """What the user can do about an end that is final."""
        return _ADVICE.get(str(self._fields().get("error_code")), _NO_ADVICE)

    def _fields(self) -> dict[str, object]:
        try:
            fields = json.loads(self.reason)
        except ValueError:
            return {}
        return fields if isinstance(fields, dict) else {}
