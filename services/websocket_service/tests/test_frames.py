"""The v1 dialect: what a client reads, and what its own frames come to."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, NoReturn
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from common_core.error_enums import ErrorCode
from huleedu_service_libs.error_handling import create_error_detail_with_context
from services.websocket_service import frames
from services.websocket_service.frames import MAX_NONCE_BYTES, InvalidFrame, Ping

MOMENT = datetime(2026, 1, 1, 12, 30, tzinfo=UTC)
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
# What Python's parser takes and no browser does, and what breaks naive code.
HOSTILE = [
    "",
    " ",
    "null",
    "[]",
    '[{"type":"ping","nonce":1}]',
    "{",
    '{"type":"ping"',
    "\ufeff{}",
    "NaN",
    '{"type":"ping","nonce":NaN}',
    '{"type":"ping","nonce":1e999}',
    '{"type":"ping","nonce":-1e999}',
    '{"type":"ping","nonce":"\\ud800"}',
    '{"type":"ping","nonce":{"\\udfff":1}}',
    '{"type":"\\ud800","nonce":1}',
    '{"type":["ping"],"nonce":1}',
    '{"type":{"ping":1},"nonce":1}',
    '{"type":null}',
    '{"type":"ping","nonce":' + "9" * 5000 + "}",
    '{"type":"ping","nonce":' + "[" * 100_000 + "]" * 100_000 + "}",
    "[" * 100_000,
    '{"a":' * 100_000,
    "\x00",
    '{"type":"ping","nonce":"\x00"}',
]


def parsed(text: str) -> Any:
    """What a browser makes of a frame: standard JSON, or an error."""

    def refuse(constant: str) -> NoReturn:
        raise AssertionError(constant)

    text.encode()
    return json.loads(text, parse_constant=refuse)


def fits(nonce: Any) -> bool:
    text = json.dumps(nonce, ensure_ascii=False, separators=(",", ":"))
    return len(text.encode()) <= MAX_NONCE_BYTES


def answer(text: str) -> str:
    """What the client is sent for its frame."""
    frame = frames.parse_client_frame(text)
    if isinstance(frame, Ping):
        return frames.pong(frame.nonce)
    assert isinstance(frame, InvalidFrame)
    return frames.error(
        create_error_detail_with_context(
            ErrorCode.VALIDATION_ERROR,
            frame.message,
            "websocket_service",
            "client_frame",
            details={"field": frame.field},
        )
    )


@given(nonce=JSON_VALUES.filter(fits))
@example(nonce="x" * (MAX_NONCE_BYTES - 2))
def test_ping_is_answered_with_its_nonce(nonce: Any) -> None:
    """Any small JSON value comes back from a ping as it was."""
    assert parsed(answer(json.dumps({"type": "ping", "nonce": nonce}))) == {
        "type": "pong",
        "nonce": nonce,
    }


@given(text=st.text() | st.builds(json.dumps, JSON_VALUES) | st.sampled_from(HOSTILE))
def test_anything_is_answered_with_standard_json(text: str) -> None:
    """Whatever a client sends, it gets one JSON object that every browser can parse."""
    assert parsed(answer(text))["type"] in {"pong", "error"}


@pytest.mark.parametrize("text", HOSTILE[:-1], ids=lambda text: text[:32])
def test_hostile_frame_is_refused(text: str) -> None:
    """A frame that is not what it has to be is refused, and its author is told why."""
    frame = frames.parse_client_frame(text)
    assert isinstance(frame, InvalidFrame)
    assert parsed(answer(text))["error"]["code"] == "VALIDATION_ERROR"


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("[]", "frame"),
        ("not json", "frame"),
        ('{"type":"ping","nonce":1,"extra":NaN}', "frame"),
        ("{}", "type"),
        ('{"type":"subscribe"}', "type"),
        ('{"type":"authenticate"}', "token"),
        ('{"type":"authenticate","token":""}', "token"),
        ('{"type":"authenticate","token":["secret"]}', "token"),
        ('{"type":"ping"}', "nonce"),
        (json.dumps({"type": "ping", "nonce": "x" * (MAX_NONCE_BYTES - 1)}), "nonce"),
        (json.dumps({"type": "ping", "nonce": "é" * 32}), "nonce"),
    ],
)
def test_refusal_names_the_field(text: str, field: str) -> None:
    """The author of a refused frame learns which part of it is wrong."""
    frame = frames.parse_client_frame(text)
    assert isinstance(frame, InvalidFrame)
    assert frame.field == field


def test_refusal_does_not_quote() -> None:
    """What a client sent by mistake, a token for one, is not sent back or logged."""
    frame = frames.parse_client_frame('{"type":"secret-type","token":"secret"}')
    assert "secret" not in repr(frame)


@given(user_id=st.text(min_size=1), offset_h=st.integers(-12, 12))
@pytest.mark.parametrize(
    ("cursor", "resumed"), [(None, None), ("7-1", None), ("7-1", True), (None, False)]
)
def test_welcome(user_id: str, offset_h: int, cursor: str | None, *, resumed: bool | None) -> None:
    """The first frame tells a client all that it needs to know about its connection."""
    expires_at = MOMENT.astimezone(timezone(timedelta(hours=offset_h)))
    frame = parsed(
        frames.welcome(
            connection_id="c1",
            user_id=user_id,
            heartbeat_ms=30_000,
            cursor=cursor,
            resumed=resumed,
            token_expires_at=expires_at,
        )
    )
    assert datetime.fromisoformat(frame.pop("token_expires_at")) == MOMENT
    assert frame == {
        "type": "welcome",
        "connection_id": "c1",
        "user_id": user_id,
        "heartbeat_ms": 30_000,
        "cursor": cursor,
        "resumed": resumed,
    }


@pytest.mark.parametrize("reason", frames.ResyncReason)
@pytest.mark.parametrize("cursor", [None, "7-1"])
def test_resync(reason: frames.ResyncReason, cursor: str | None) -> None:
    """A resync says why nobody can tell what is missing, and from where on all will be told."""
    assert parsed(frames.resync(reason, cursor)) == {
        "type": "resync",
        "reason": reason.value,
        "cursor": cursor,
    }


def test_heartbeat() -> None:
    """A heartbeat says when it was sent, in UTC."""
    assert parsed(frames.heartbeat(MOMENT)) == {
        "type": "heartbeat",
        "at": "2026-01-01T12:30:00+00:00",
    }


def test_error_is_the_public_body() -> None:
    """An error frame holds what an HTTP response would, and no stack trace."""
    detail = create_error_detail_with_context(
        ErrorCode.RATE_LIMIT,
        "Too many",
        "websocket_service",
        "read",
        UUID(int=7),
        details={"bad": float("inf")},
    )
    frame = parsed(frames.error(detail))
    assert frame.keys() == {"type", "error"}
    assert frame["error"]["code"] == "RATE_LIMIT"
    assert frame["error"]["correlation_id"] == str(UUID(int=7))
    assert "stack_trace" not in frame["error"]
    assert detail.stack_trace is not None
