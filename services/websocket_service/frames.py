"""The v1 dialect's frames: what the server writes, and what it makes of the client's."""

import json
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from common_core.models.error_models import ErrorDetail
from huleedu_service_libs import strict_json
from huleedu_service_libs.error_handling import public_error_body

SUBPROTOCOL_V1: Final = "huleedu.notify.v1"
MAX_NONCE_BYTES: Final = 64


class Dialect(StrEnum):
    """How a connection speaks; the client chooses by subprotocol."""

    PLAIN = "plain"
    V1 = SUBPROTOCOL_V1


class ResyncReason(StrEnum):
    """Why it can't be proven that nothing is missing."""

    HISTORY_TRIMMED = "history_trimmed"
    HISTORY_LOST = "history_lost"
    CURSOR_UNKNOWN = "cursor_unknown"


@dataclass(frozen=True, slots=True)
class Ping:
    """A client's `ping`; `nonce` is any JSON value."""

    nonce: Any


@dataclass(frozen=True, slots=True)
class Authenticate:
    """A client's `authenticate`."""

    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class InvalidFrame:
    """What is wrong with a client's frame, said to its author."""

    field: str
    message: str


def welcome(
    *,
    connection_id: str,
    user_id: str,
    heartbeat_ms: int,
    cursor: str | None,
    resumed: bool | None,
    token_expires_at: datetime,
) -> str:
    """The first frame of each connection."""
    return _frame(
        "welcome",
        connection_id=connection_id,
        user_id=user_id,
        heartbeat_ms=heartbeat_ms,
        cursor=cursor,
        resumed=resumed,
        token_expires_at=token_expires_at.isoformat(),
    )


def resync(reason: ResyncReason, cursor: str | None) -> str:
    """Nobody can prove that nothing is missing: the application fetches its state anew."""
    return _frame("resync", reason=reason.value, cursor=cursor)


def heartbeat(at: datetime) -> str:
    """Sent when nothing else was, so that the client can tell a quiet line from a dead one."""
    return _frame("heartbeat", at=at.isoformat())


def token_expiring(expires_in_ms: int) -> str:
    """Time to send `authenticate` with a new token."""
    return _frame("token_expiring", expires_in_ms=expires_in_ms)


def token_refreshed(token_expires_at: datetime) -> str:
    """The answer to `authenticate`."""
    return _frame("token_refreshed", token_expires_at=token_expires_at.isoformat())


def going_away(reconnect_after_ms: int) -> str:
    """The server drains; each connection has a delay of its own."""
    return _frame("going_away", reconnect_after_ms=reconnect_after_ms)


def pong(nonce: Any) -> str:
    """The answer to `ping`."""
    return _frame("pong", nonce=nonce)


def error(detail: ErrorDetail) -> str:
    """The public error body, as HTTP responses carry it."""
    return _frame("error", **public_error_body(detail))


def parse_client_frame(text: str) -> Ping | Authenticate | InvalidFrame:
    """What a client's text asks for."""
    try:
        frame = strict_json.loads(text)
    except ValueError:
        frame = None
    if not isinstance(frame, dict):
        return InvalidFrame("frame", "Expected one JSON object")
    if "type" not in frame:
        return InvalidFrame("type", "Field 'type' is missing")
    match frame["type"]:
        case "ping":
            return _ping(frame)
        case "authenticate":
            return _authenticate(frame)
    return InvalidFrame("type", "Unknown type: this server understands 'authenticate' and 'ping'")


def _ping(frame: dict[str, Any]) -> Ping | InvalidFrame:
    if "nonce" not in frame:
        return InvalidFrame("nonce", "Field 'nonce' is missing")
    if not _fits_nonce(frame["nonce"]):
        return InvalidFrame(
            "nonce", f"Field 'nonce' must be JSON of at most {MAX_NONCE_BYTES} bytes"
        )
    return Ping(frame["nonce"])


def _authenticate(frame: dict[str, Any]) -> Authenticate | InvalidFrame:
    if "token" not in frame:
        return InvalidFrame("token", "Field 'token' is missing")
    if not isinstance(frame["token"], str) or not frame["token"]:
        return InvalidFrame("token", "Field 'token' must be a JWT")
    return Authenticate(frame["token"])


def _fits_nonce(nonce: Any) -> bool:
    try:
        return len(_compact(nonce).encode()) <= MAX_NONCE_BYTES
    except (ValueError, RecursionError):
        # Infinity, which Python reads from 1e999, and half a surrogate pair are no JSON to send.
        return False


def _frame(type_: str, **fields: Any) -> str:
    return _compact({"type": type_, **fields})


def _compact(value: Any) -> str:
    return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
