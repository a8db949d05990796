"""What a notification is on its user's channel, and what is refused."""

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
from redis.asyncio import Redis

from common_core.error_enums import ErrorCode
from huleedu_service_libs.error_handling import HuleEduError
from huleedu_service_libs.notification_settings import HistoryLimits
from huleedu_service_libs.notifications import Notification, NotificationReceipt
from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_pubsub import RedisPubSub
from huleedu_service_libs.redis_server import RedisServer
from libs.huleedu_service_libs.tests.redis.user_ids import USER_IDS


class Colour(Enum):
    RED = "red"


class Model(BaseModel):
    count: int
    at: datetime


async def test_published_object(client: RedisClient) -> None:
    """A durable notification is compact JSON: its place in the chain, then what was published."""
    before = datetime.now(UTC)
    async with client.subscribe("ws:teacher-1") as subscription:
        receipt = await client.publish_notification(
            Notification(
                user_id="teacher-1",
                event_type="batch_results_ready",
                data={"batch_id": "b-1", "title": "Årskurs 9", "n": 3},
            )
        )
        published = await anext(subscription)
    timestamp = json.loads(published)["timestamp"]
    assert published == (
        f'{{"id":"{receipt.id}","prev":null,"timestamp":"{timestamp}",'
        '"event":"batch_results_ready","data":{"batch_id":"b-1","title":"Årskurs 9","n":3},'
        '"source_service":"test"}'.encode()
    )
    assert before <= datetime.fromisoformat(timestamp) <= datetime.now(UTC)
    assert datetime.fromisoformat(timestamp).tzinfo == UTC
    assert receipt == NotificationReceipt(receipt.id, receivers=1, duplicate=False)


async def test_all_fields(client: RedisClient) -> None:
    """Each field that a notification can have is where readers look for it, in this order."""
    correlation_id = UUID("12345678-1234-5678-1234-567812345678")
    tracer = TracerProvider().get_tracer("test")
    async with client.subscribe("ws:t") as subscription:
        with tracer.start_as_current_span("publishing") as span:
            receipt = await client.publish_notification(
                Notification(
                    user_id="t",
                    event_type="batch_status_updated",
                    data={"done": 3},
                    idempotency_key="job-1",
                    collapse_key='progress of "b-1"',
                    expires_in_s=60,
                    correlation_id=correlation_id,
                    source_service="batch_service",
                )
            )
        published = await anext(subscription)
    context = span.get_span_context()
    timestamp = json.loads(published)["timestamp"]
    assert published == (
        f'{{"id":"{receipt.id}","prev":null,"collapse_key":"progress of \\"b-1\\"",'
        f'"timestamp":"{timestamp}","event":"batch_status_updated","data":{{"done":3}},'
        f'"correlation_id":"{correlation_id}",'
        '"source_service":"batch_service","metadata":{"traceparent":'
        f'"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"}}}}'.encode()
    )


async def test_not_durable(client: RedisClient, admin: Redis) -> None:
    """Without durability it is the object `event` and `data`, and Redis keeps nothing of it."""
    async with client.subscribe("ws:t") as subscription:
        receipt = await client.publish_notification(
            Notification(user_id="t", event_type="e", data={"n": 3}, durable=False)
        )
        assert receipt == NotificationReceipt(None, receivers=1)
        assert await anext(subscription) == b'{"event":"e","data":{"n":3}}'
    assert await admin.keys() == []


async def test_all_fields_of_what_is_not_durable(client: RedisClient) -> None:
    """What is not durable has the other fields only where they were given."""
    tracer = TracerProvider().get_tracer("test")
    async with client.subscribe("ws:t") as subscription:
        with tracer.start_as_current_span("publishing") as span:
            await client.publish_user_notification(
                "t",
                "e",
                {"a": 1},
                durable=False,
                collapse_key="progress",
                correlation_id="c-1",
                source_service="batch_service",
            )
        context = span.get_span_context()
        assert await anext(subscription) == (
            '{"collapse_key":"progress","event":"e","data":{"a":1},"correlation_id":"c-1",'
            '"source_service":"batch_service","metadata":{"traceparent":'
            f'"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"}}}}'.encode()
        )


@pytest.mark.parametrize("durable", [True, False], ids=["durable", "not durable"])
async def test_nobody_listens(client: RedisClient, *, durable: bool) -> None:
    """A notification for a user without a connection reaches nobody, and that is no error."""
    assert await client.publish_user_notification("nobody", "e", {}, durable=durable) == 0


async def test_receivers(client: RedisClient, server: RedisServer) -> None:
    """A publisher learns how many processes were handed the notification."""
    async with (
        RedisClient(client_id="another", redis_url=server.url) as another,
        client.subscribe("ws:t"),
        client.subscribe("ws:t"),
        another.subscribe("ws:t"),
    ):
        assert await client.publish_user_notification("t", "e", {}) == 2


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
        published = json.loads(await anext(subscription))
        assert (published["event"], published["data"]) == ("class_created", data)


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
async def test_what_is_not_json_is_refused(client: RedisClient, admin: Redis, case: str) -> None:
    """Data that JSON can't hold is the caller's error, and nothing of it is published."""
    async with client.subscribe("ws:t") as subscription:
        for durable in (True, False):
            with pytest.raises(HuleEduError) as refused:
                await client.publish_user_notification("t", "e", REFUSED[case], durable=durable)
            assert refused.value.error_code == ErrorCode.VALIDATION_ERROR.value
            assert refused.value.operation == "publish_user_notification"
            assert refused.value.service == "test"
            assert refused.value.error_detail.details["field"] == "data"
        await client.publish("ws:t", b"last")
        assert await anext(subscription) == b"last"
    assert await admin.keys() == []


REFUSED_FIELDS: dict[str, list[Any]] = {
    "user_id": ["", "half \ud83e", None, 7, b"t"],
    "event_type": ["", "half \ud83e", None, 7, b"e"],
    "idempotency_key": ["", "half \ud83e", 7, b"k", "x" * 257, "ö" * 129],
    "collapse_key": ["", "half \ud83e", 7, b"k", "x" * 257, "ö" * 129],
    "correlation_id": ["", "half \ud83e", 7, b"k", "x" * 257],
    "source_service": ["", "half \ud83e", 7, b"k", "x" * 257],
    "expires_in_s": [
        *(0, -1, 10 * 365 * 86_400 + 1, 10**400, True, "60"),
        *(float("nan"), float("inf"), float("-inf")),
    ],
}


@pytest.mark.parametrize("field", REFUSED_FIELDS)
async def test_refused_fields(client: RedisClient, admin: Redis, field: str) -> None:
    """A field that can't be what it is meant to be is the caller's error and named in it."""
    for value in REFUSED_FIELDS[field]:
        given = {"user_id": "t", "event_type": "e", "data": {}, field: value}
        with pytest.raises(HuleEduError) as refused:
            await client.publish_notification(Notification(**given))
        assert refused.value.error_code == ErrorCode.VALIDATION_ERROR.value
        assert refused.value.error_detail.details["field"] == field
    assert await admin.keys() == []


async def test_accepted_fields(client: RedisClient) -> None:
    """What lies just within the limits is published."""
    accepted: list[dict[str, Any]] = [
        {"idempotency_key": "x" * 256},
        {"collapse_key": "ö" * 128},
        {"correlation_id": "any text: \r\n{}"},
        {"expires_in_s": 1e-9},
        {"expires_in_s": 10 * 365 * 86_400},
        {"event_type": "e" * 10_000},
    ]
    for fields in accepted:
        given = {"user_id": "t", "event_type": "e", "data": {}, **fields}
        receipt = await client.publish_notification(Notification(**given))
        assert receipt.id is not None


@pytest.mark.parametrize("field", ["idempotency_key", "expires_in_s"])
async def test_only_what_is_kept_expires_or_repeats(client: RedisClient, field: str) -> None:
    """An expiry and an idempotency key are refused for what is not durable."""
    given: dict[str, Any] = {"idempotency_key": "k", "expires_in_s": 1}
    with pytest.raises(HuleEduError) as refused:
        await client.publish_notification(
            Notification(
                user_id="t", event_type="e", data={}, durable=False, **{field: given[field]}
            )
        )
    assert refused.value.error_detail.details["field"] == field


@pytest.mark.parametrize("durable", [True, False], ids=["durable", "not durable"])
async def test_size_limit(server: RedisServer, admin: Redis, *, durable: bool) -> None:
    """An object of exactly the limit is published, one byte more is refused."""

    def of(text: str) -> Notification:
        return Notification(user_id="t", event_type="e", data={"ö": text}, durable=durable)

    size = len(of("").encode(service="test", max_bytes=65_536))
    limits = HistoryLimits(max_payload_bytes=size + 1000)
    async with RedisClient(client_id="test", redis_url=server.url, history_limits=limits) as client:
        with pytest.raises(HuleEduError) as refused:
            await client.publish_notification(of("x" * 999 + "ö"))
        assert refused.value.error_detail.details["field"] == "data"
        assert f"the limit is {size + 1000}" in str(refused.value)
        assert await admin.keys() == []
        await client.publish_notification(of("x" * 998 + "ö"))


async def test_default_size_limit(client: RedisClient) -> None:
    """64 KiB can be published, and no more."""
    empty = Notification(user_id="t", event_type="e", data={"text": ""})
    most = 65_536 - len(empty.encode(service="test", max_bytes=65_536))
    await client.publish_user_notification("t", "e", {"text": "x" * most})
    with pytest.raises(HuleEduError):
        await client.publish_user_notification("t", "e", {"text": "x" * (most + 1)})


@pytest.mark.parametrize("user_id", ["", "half \ud83e"])
def test_user_ids_that_name_no_channel(user_id: str) -> None:
    """There is no channel for nobody in particular."""
    client = RedisClient(client_id="test")
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
            assert json.loads(await anext(subscription))["data"] == {"to": user_id}
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
        assert json.loads(await anext(subscription))["source_service"] == "another-service"
    with pytest.raises(HuleEduError) as refused:
        await pubsub.publish_user_notification("t", "class_created", {"o": object()})
    assert refused.value.service == "another-service"
