"""Why connections end: every close code with its error code and what the client should do.

PROTOCOL.md shows this table; a test holds the two against each other.
"""

import json
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final
from uuid import UUID

from common_core.error_enums import ErrorCode
from huleedu_service_libs.error_handling import HuleEduError

# RFC 6455, section 5.5: a control frame carries 125 bytes, two of which are the code.
MAX_REASON_BYTES: Final = 123
MAX_RETRY_AFTER_MS: Final = 9_999


class Reconnect(StrEnum):
    """What a client should do after a close."""

    STOP = "stop"
    NEW_TOKEN = "get a new token, then reconnect"  # noqa: S105 - advice, no password
    AFTER_DELAY = "reconnect after `retry_after_ms`"
    BACKOFF = "reconnect with backoff"
    RESUME = "reconnect and resume"
    NOT_BY_ITSELF = "not retry by itself"
    NOT_REPEAT = "not repeat it"
    BACK_OFF = "back off"


@dataclass(frozen=True, slots=True)
class CloseReason:
    """One way for a connection to end. `error_code` is None where nobody is at fault."""

    code: int
    error_code: ErrorCode | None
    message: str
    reconnect: Reconnect
    why: str | None = None
    """`details.reason` of the error frame before the close, where the code alone is not clear."""

    def with_message(self, message: str, *, why: str | None = None) -> "CloseReason":
        """The same close, said more precisely."""
        return replace(self, message=message, why=why)


CLIENT_CLOSED = CloseReason(1000, None, "Closed by the client", Reconnect.STOP)
CLIENT_GONE = CloseReason(1006, None, "Gone without a close frame", Reconnect.BACKOFF)
PROTOCOL_VIOLATION = CloseReason(
    1002, ErrorCode.INVALID_REQUEST, "Invalid frame", Reconnect.NOT_REPEAT
)
BINARY_FRAME = CloseReason(
    1003, ErrorCode.INVALID_REQUEST, "No binary frames", Reconnect.NOT_REPEAT
)
INVALID_UTF8 = CloseReason(
    1007, ErrorCode.INVALID_REQUEST, "Text is not UTF-8", Reconnect.NOT_REPEAT
)
UNAUTHENTICATED = CloseReason(
    1008, ErrorCode.AUTHENTICATION_ERROR, "Not authenticated", Reconnect.NEW_TOKEN
)
TOKEN_EXPIRED = UNAUTHENTICATED.with_message("Token has expired", why="token_expired")
TOKEN_REVOKED = UNAUTHENTICATED.with_message("Token was revoked", why="token_revoked")
FORBIDDEN = CloseReason(1008, ErrorCode.AUTHORIZATION_ERROR, "Not allowed", Reconnect.STOP)
OTHER_USER = FORBIDDEN.with_message("Token of another user", why="other_user")
DISCONNECTED = FORBIDDEN.with_message("Disconnected by an operator", why="disconnected")
MESSAGE_TOO_BIG = CloseReason(
    1009, ErrorCode.INVALID_REQUEST, "Message is too big", Reconnect.NOT_REPEAT
)
DEFECT = CloseReason(
    1011, ErrorCode.UNKNOWN_ERROR, "An unexpected error occurred", Reconnect.BACKOFF
)
DRAINING = CloseReason(
    1012, ErrorCode.SERVICE_UNAVAILABLE, "Server is restarting", Reconnect.AFTER_DELAY
)
MOVED = DRAINING.with_message("Disconnected by an operator", why="disconnected")
TRY_LATER = CloseReason(1013, ErrorCode.CONNECTION_ERROR, "Try again later", Reconnect.AFTER_DELAY)
TOO_MANY_CONNECTIONS = CloseReason(
    4000, ErrorCode.QUOTA_EXCEEDED, "Too many connections", Reconnect.NOT_BY_ITSELF
)
SLOW_CONSUMER = CloseReason(4008, ErrorCode.TIMEOUT, "Client reads too slowly", Reconnect.RESUME)
SILENT_CLIENT = SLOW_CONSUMER.with_message("Client is silent")
RATE_LIMITED = CloseReason(4009, ErrorCode.RATE_LIMIT, "Too many messages", Reconnect.BACK_OFF)

CLOSE_REASONS: Final = (
    CLIENT_CLOSED,
    PROTOCOL_VIOLATION,
    BINARY_FRAME,
    INVALID_UTF8,
    UNAUTHENTICATED,
    FORBIDDEN,
    MESSAGE_TOO_BIG,
    DEFECT,
    DRAINING,
    TRY_LATER,
    TOO_MANY_CONNECTIONS,
    SLOW_CONSUMER,
    RATE_LIMITED,
)
"""Every reason that a client can see, by code."""

VIOLATIONS: Final = {1002: PROTOCOL_VIOLATION, 1007: INVALID_UTF8, 1009: MESSAGE_TOO_BIG}
"""What a frame parser finds wrong, by the code that RFC 6455 gives it."""

_BY_ERROR_CODE: Final = {
    reason.error_code: reason
    for reason in (
        UNAUTHENTICATED,
        FORBIDDEN,
        DRAINING,
        TRY_LATER,
        TOO_MANY_CONNECTIONS,
        SLOW_CONSUMER,
        RATE_LIMITED,
    )
}


def reason_for(error: HuleEduError) -> CloseReason:
    """How an error ends a connection.

    A key that is missing on our side is no fault of the client's: it may try later. The
    message of that stays inside.
    """
    detail = error.error_detail
    if detail.error_code is ErrorCode.CONFIGURATION_ERROR:
        return TRY_LATER
    for error_code, reason in _BY_ERROR_CODE.items():
        if detail.error_code is error_code:
            why = detail.details.get("reason")
            return reason.with_message(detail.message, why=why if isinstance(why, str) else None)
    return DEFECT


def reason_text(
    reason: CloseReason, correlation_id: UUID, *, retry_after_ms: int | None = None
) -> str:
    """The JSON object of a close frame, at most 123 bytes of UTF-8.

    Where room is short the correlation id goes without its dashes, then the message is cut at a
    character boundary. `retry_after_ms` is at most 9,999: more digits would leave no room.
    """
    if reason.error_code is None:
        return ""
    for correlation in (str(correlation_id), correlation_id.hex):
        fields: dict[str, str | int] = {
            "error_code": reason.error_code.value,
            "correlation_id": correlation,
        }
        if retry_after_ms is not None:
            fields["retry_after_ms"] = min(retry_after_ms, MAX_RETRY_AFTER_MS)
        room = MAX_REASON_BYTES - len(_compact({**fields, "message": ""}))
        if len(_compact(reason.message)) - len('""') <= room:
            break
    message = reason.message[: max(room, 0)]
    while message and len(_compact(message)) - len('""') > room:
        message = message[:-1]
    return _compact({**fields, "message": message}).decode()


def _compact(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
