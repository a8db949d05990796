"""What `publish_user_notification` puts on a user's channel, and what it refuses."""

import json
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from enum import Enum
from types import MappingProxyType
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from pydantic import BaseModel

from common_core.error_enums import ErrorCode
from huleedu_service_libs.error_handling import HuleEduError
from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_pubsub import RedisPubSub
from huleedu_service_libs.redis_server import RedisServer

USER_IDS = [
    "teacher-1",
    "teacher-10",
    "teacher-*",
    "*",
    "?",
    "[a-z]",
    "a:b",
    "a",
    "b",
    ":",
    "}",
    "{",
    "{a}",
    " ",
    "a b",
    "line\nbreak",
    "line\r\nPUBLISH ws:a x",
    "🧑‍🏫",
    "Åsa",
    "\x00",
    "x" * 10_000,
    "x" * 9_999,
]


class Colour(Enum):
    RED = "red"


class Model(BaseModel):
    count: int
    at: datetime


async def test_published_object(client: RedisClient) -> None:
    """A notification is the object `event` and `data`, as compact UTF-8 JSON, and nothing else."""
    async with client.subscribe("ws:teacher-1") as subscription:
        received = await client.publish_user_notification(
            "teacher-1", "batch_results_ready", {"batch_id": "b-1", "title": "Årskurs 9", "n": 3}
        )
        assert received == 1
        assert await anext(subscription) == (
            '{"event":"batch_results_ready",'
            '"data":{"batch_id":"b-1","title":"Årskurs 9","n":3}}'.encode()
        )


async def test_nobody_listens(client: RedisClient) -> None:
    """A notification for a user without a connection reaches nobody, and that is no error."""
    assert await client.publish_user_notification("nobody", "class_created", {}) == 0


async def test_trace_context(client: RedisClient) -> None:
    """Inside a recording span the notification carries the span's W3C trace context."""
    tracer = TracerProvider().get_tracer("test")
    async with client.subscribe("ws:t") as subscription:
        with tracer.start_as_current_span("publishing") as span:
            await client.publish_user_notification("t", "class_created", {"a": 1})
        context = span.get_span_context()
        assert json.loads(await anext(subscription)) == {
            "event": "class_created",
            "data": {"a": 1},
            "metadata": {
                "traceparent": f"00-{context.trace_id:032x}-{context.span_id:016x}"
                f"-{context.trace_flags:02x}"
            },
        }


async def test_values_that_have_a_json_form(client: RedisClient) -> None:
    """UUIDs, times, enums and models are written as pydantic writes them."""
    at = datetime(2026, 11, 21, 8, 30, tzinfo=UTC)
    data = MappingProxyType(
        {
            "id": UUID("12345678-1234-5678-1234-567812345678"),
            "at": at,
            "colour": Colour.RED,
            "model": Model(count=1, at=at),
            "set": {1},
            "nested": [{"tuple": (None, True, 1.5)}],
        }
    )
    async with client.subscribe("ws:t") as subscription:
        await client.publish_user_notification("t", "class_created", data)
        assert json.loads(await anext(subscription))["data"] == {
            "id": "12345678-1234-5678-1234-567812345678",
            "at": "2026-11-21T08:30:00Z",
            "colour": "red",
            "model": {"count": 1, "at": "2026-11-21T08:30:00Z"},
            "set": [1],
            "nested": [{"tuple": [None, True, 1.5]}],
        }


JSON_OBJECTS = st.dictionaries(
    st.text(),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        # Half a surrogate pair is no text.
        | st.text(st.characters(exclude_categories=["Cs"])),
        lambda values: st.lists(values) | st.dictionaries(st.text(), values),
        max_leaves=10,
    ),
)


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=JSON_OBJECTS)
async def test_any_json_object(client: RedisClient, data: dict[str, Any]) -> None:
    """Any JSON object arrives as it was given."""
    async with client.subscribe("ws:t") as subscription:
        await client.publish_user_notification("t", "class_created", data)
        assert json.loads(await anext(subscription)) == {"event": "class_created", "data": data}


def recursive() -> dict[str, object]:
    inner: dict[str, object] = {}
    inner["inner"] = inner
    return inner


def deep() -> dict[str, object]:
    outer: dict[str, object] = {}
    for _ in range(100_000):
        outer = {"inner": outer}
    return outer


REFUSED: dict[str, Any] = {
    "NaN": {"n": float("nan")},
    "infinity": {"n": [float("-inf")]},
    "NaN in a set": {"n": {float("nan")}},
    "no object": [1, 2],
    "text": "text",
    "nothing": None,
    "no JSON form": {"o": object()},
    "key": {("a", "b"): 1},
    "lone surrogate": {"s": "\ud800"},
    "lone surrogate in a key": {"\udfff": 1},
    "bytes": {"b": b"\xff"},
    "recursive": recursive(),
    "deep": deep(),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_what_is_not_json_is_refused(client: RedisClient, case: str) -> None:
    """Data that JSON can't hold is the caller's error, and nothing of it is published."""
    async with client.subscribe("ws:t") as subscription:
        with pytest.raises(HuleEduError) as refused:
            await client.publish_user_notification("t", "class_created", REFUSED[case])
        await client.publish("ws:t", b"last")
        assert await anext(subscription) == b"last"
    assert refused.value.error_code == ErrorCode.VALIDATION_ERROR.value
    assert refused.value.operation == "publish_user_notification"
    assert refused.value.service == "test"
    assert refused.value.error_detail.details["field"] == "data"


async def test_event_type_that_is_no_text(client: RedisClient) -> None:
    """An event type that UTF-8 can't hold is refused as well."""
    with pytest.raises(HuleEduError):
        await client.publish_user_notification("t", "\ud800", {})


@pytest.mark.parametrize("user_id", ["", "half \ud83e"])
async def test_user_ids_that_name_no_channel(client: RedisClient, user_id: str) -> None:
    """A notification for nobody in particular is the caller's error."""
    with pytest.raises(HuleEduError) as refused:
        await client.publish_user_notification(user_id, "class_created", {})
    assert refused.value.error_detail.details["field"] == "user_id"
    with pytest.raises(ValueError, match=r"empty|surrogates"):
        client.get_user_channel(user_id)


async def test_every_user_id_has_its_own_channel(client: RedisClient) -> None:
    """Whatever characters a user id has, its notifications reach that user and nobody else."""
    async with AsyncExitStack() as stack:
        subscriptions = {
            user_id: await stack.enter_async_context(
                client.subscribe(client.get_user_channel(user_id))
            )
            for user_id in USER_IDS
        }
        for user_id in USER_IDS:
            assert await client.publish_user_notification(user_id, "first", {"to": user_id}) == 1
        for user_id in USER_IDS:
            await client.publish_user_notification(user_id, "last", {})
        for user_id, subscription in subscriptions.items():
            assert json.loads(await anext(subscription)) == {
                "event": "first",
                "data": {"to": user_id},
            }
            assert json.loads(await anext(subscription))["event"] == "last"


@given(user_id=st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_channel_name_is_the_id_as_it_is(user_id: str) -> None:
    """The channel is the prefix, a colon and the unchanged id: other publishers count on it."""
    client = RedisClient(client_id="test")
    assert client.get_user_channel(user_id) == f"ws:{user_id}"


async def test_prefix(server: RedisServer) -> None:
    """Publisher and subscriber can agree on another prefix."""
    async with (
        RedisClient(client_id="test", redis_url=server.url, channel_prefix="staging") as client,
        client.subscribe("staging:t") as subscription,
    ):
        assert client.get_user_channel("t") == "staging:t"
        await client.publish_user_notification("t", "class_created", {})
        assert json.loads(await anext(subscription))["event"] == "class_created"


async def test_pubsub_over_a_client(client: RedisClient) -> None:
    """`RedisPubSub` publishes and subscribes over any client that it is given."""
    pubsub = RedisPubSub(client, "another-service")
    async with pubsub.subscribe(pubsub.get_user_channel("t")) as subscription:
        assert await pubsub.publish("ws:t", "raw") == 1
        assert await pubsub.publish_user_notification("t", "class_created", {}) == 1
        assert await anext(subscription) == b"raw"
        assert json.loads(await anext(subscription)) == {"event": "class_created", "data": {}}
    with pytest.raises(HuleEduError) as refused:
        await pubsub.publish_user_notification("t", "class_created", {"o": object()})
    assert refused.value.service == "another-service"
