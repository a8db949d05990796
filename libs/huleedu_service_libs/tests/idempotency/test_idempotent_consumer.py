"""An event that is delivered several times is handled once."""

import asyncio
import json
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from huleedu_service_libs.event_utils import generate_deterministic_event_id
from huleedu_service_libs.idempotency_v2 import (
    ConfirmIdempotency,
    IdempotencyConfig,
    KafkaRecord,
    idempotent_consumer,
)
from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_server import RedisServer
from libs.huleedu_service_libs.tests.idempotency.conftest import EVENT, Record, delivery, raw

CONFIG = IdempotencyConfig("result_service", event_type_ttls={"essay.graded.v1": 3600})
KEY = "huleedu:idempotency:v2:result_service:essay_graded_v1:" + generate_deterministic_event_id(
    raw()
)


class Work:
    """A handler's: counts its runs; fails as often as it is told to."""

    def __init__(self, redis: RedisClient, config: IdempotencyConfig = CONFIG) -> None:
        self.runs = 0
        self.errors: list[Exception] = []

        @idempotent_consumer(redis, config)
        async def handle(message: Record, *, confirm_idempotency: ConfirmIdempotency) -> int:
            self.runs += 1
            if self.errors:
                raise self.errors.pop()
            await confirm_idempotency()
            offset: int = message.offset
            return offset

        self.handle = handle


async def test_redelivered_event(redis: RedisClient) -> None:
    """An event that comes again after it was handled is not handled again."""
    work = Work(redis)
    assert await work.handle(delivery(raw())) == 7
    assert await work.handle(delivery(raw())) is None
    assert work.runs == 1


async def test_arguments_and_result(redis: RedisClient) -> None:
    """The handler gets what its caller gives, and the caller what the handler returns."""

    @idempotent_consumer(redis, CONFIG)
    async def handle(
        message: KafkaRecord,
        factor: int,
        *,
        unit: str,
        confirm_idempotency: ConfirmIdempotency,
    ) -> tuple[object, ...]:
        """Grade."""
        await confirm_idempotency()
        return message, factor, unit

    message = delivery(raw())
    assert await handle(message, 3, unit="points") == (message, 3, "points")
    assert (handle.__name__, handle.__doc__) == ("handle", "Grade.")


async def test_what_stands_in_redis(redis: RedisClient) -> None:
    """While an event is handled Redis says so for five minutes, then that it is done."""
    statuses: list[str] = []
    lifetimes_s: list[int] = []

    @idempotent_consumer(redis, CONFIG)
    async def handle(_message: Record, *, confirm_idempotency: ConfirmIdempotency) -> None:
        for step in (None, confirm_idempotency, confirm_idempotency):
            if step is not None:
                await step()
            assert await redis.scan_pattern("*") == [KEY]
            statuses.append(json.loads(await redis.get(KEY) or "null")["status"])
            lifetimes_s.append(await redis.ttl(KEY))

    await handle(delivery(raw()))
    assert statuses == ["processing", "completed", "completed"]
    assert lifetimes_s == pytest.approx([300, 3600, 3600], abs=30)


@pytest.mark.parametrize(
    ("event_type", "ttl_s"), [("essay.graded.v1", 3600), ("essay.graded", 60), ("other", 60)]
)
async def test_lifetimes(redis: RedisClient, event_type: str, ttl_s: int) -> None:
    """For how long an event is remembered depends on its type."""
    config = IdempotencyConfig(
        "s", event_type_ttls={"essay.graded.v1": 3600}, default_ttl=60, key_prefix="prefix"
    )
    await Work(redis, config).handle(delivery(raw(event_type=event_type)))
    (key,) = await redis.scan_pattern("*")
    assert key.startswith(f"prefix:s:{event_type.replace('.', '_')}:")
    assert await redis.ttl(key) == pytest.approx(ttl_s, abs=30)


@pytest.mark.parametrize(
    "again",
    [
        delivery(raw(), headers=(("event_type", b"another.type"), ("event_id", b"another id"))),
        delivery(raw(event_timestamp="2027-07-07T07:07:07+00:00")),
        delivery(raw(metadata={"traceparent": "another"})),
        delivery(json.dumps(dict(reversed(EVENT.items())), indent=4).encode()),
        delivery(raw(data=dict(reversed({"essay_id": "essay-1", "grade": "B"}.items())))),
    ],
    ids=["headers", "timestamp", "trace", "order and blanks", "order of the data"],
)
async def test_same_event_in_other_clothes(redis: RedisClient, again: Record) -> None:
    """Headers, key order, blanks, a new timestamp or trace do not make it another event."""
    work = Work(redis)
    assert await work.handle(delivery(raw())) == 7
    assert await work.handle(again) is None
    assert await redis.scan_pattern("*") == [KEY]


@pytest.mark.parametrize(
    "change",
    [{"event_id": "another"}, {"data": {"essay_id": "essay-2"}}, {"event_type": "essay.seen.v1"}],
)
async def test_another_event(redis: RedisClient, change: dict[str, object]) -> None:
    """An event that differs in its id, its data or its type is handled."""
    work = Work(redis)
    await work.handle(delivery(raw()))
    assert await work.handle(delivery(raw(**change))) == 7


async def test_services_are_apart(redis: RedisClient) -> None:
    """Each service handles the event once."""
    one, other = (Work(redis, IdempotencyConfig(name)) for name in ("one", "other"))
    assert await one.handle(delivery(raw())) == await other.handle(delivery(raw())) == 7


async def test_two_consumers_at_once(server: RedisServer) -> None:
    """Of many deliveries at the same time, to two processes' clients, one runs."""
    async with (
        RedisClient(client_id="one", redis_url=server.url) as one,
        RedisClient(client_id="other", redis_url=server.url) as other,
    ):
        works = [Work(one), Work(other)]
        results = await asyncio.gather(
            *(works[number % 2].handle(delivery(raw())) for number in range(40))
        )
    assert sorted(results, key=str) == [7, *[None] * 39]
    assert sum(work.runs for work in works) == 1


async def test_failure_and_redelivery(redis: RedisClient) -> None:
    """A handler that fails runs once, its error is the caller's, and the event can come again."""
    work = Work(redis)
    for error in (ValueError("first"), OSError("second"), TimeoutError("third")):
        work.errors = [error]
        with pytest.raises(type(error)) as raised:
            await work.handle(delivery(raw()))
        assert raised.value is error
        assert await redis.scan_pattern("*") == []
    assert work.runs == 3
    assert await work.handle(delivery(raw())) == 7
    assert await work.handle(delivery(raw())) is None
    assert work.runs == 4


async def test_failure_after_confirmation(redis: RedisClient) -> None:
    """What fails after the work was confirmed does not make it undone."""

    @idempotent_consumer(redis, CONFIG)
    async def handle(_message: Record, *, confirm_idempotency: ConfirmIdempotency) -> None:
        await confirm_idempotency()
        raise ValueError("afterwards")

    with pytest.raises(ValueError, match="afterwards"):
        await handle(delivery(raw()))
    assert await handle(delivery(raw())) is None
    assert json.loads(await redis.get(KEY) or "null")["status"] == "completed"


async def test_unconfirmed_event(redis: RedisClient) -> None:
    """A handler that ends well without confirming leaves the claim to lapse."""
    runs = []

    @idempotent_consumer(redis, CONFIG)
    async def handle(message: Record, *, confirm_idempotency: ConfirmIdempotency) -> str:
        runs.append((message, confirm_idempotency))
        return "unconfirmed"

    assert await handle(delivery(raw())) == "unconfirmed"
    assert await handle(delivery(raw())) is None
    assert 0 < await redis.ttl(KEY) <= 300
    await redis.delete(KEY)
    assert await handle(delivery(raw())) == "unconfirmed"
    assert len(runs) == 2


async def test_cancelled_handler(redis: RedisClient) -> None:
    """A handler that is cancelled gives its claim back, so that the event can come again."""
    started = asyncio.Event()

    @idempotent_consumer(redis, CONFIG)
    async def wait(_message: Record, *, confirm_idempotency: ConfirmIdempotency) -> None:
        started.set()
        await asyncio.Event().wait()
        await confirm_idempotency()

    delivered = asyncio.create_task(wait(delivery(raw())))
    await started.wait()
    assert await redis.scan_pattern("*") == [KEY]
    delivered.cancel()
    with pytest.raises(asyncio.CancelledError):
        await delivered
    assert await redis.scan_pattern("*") == []
    assert await Work(redis).handle(delivery(raw())) == 7


NOT_EVENTS = [
    None,
    b"",
    b"{",
    b"null",
    b"[]",
    b"\xff",
    b"[" * 100_000,
    b'{"event_id": "e", "event_type": "t"}',
    b'{"event_id": "e", "event_type": "t", "data": null}',
    b'{"data": NaN}',
]


@pytest.mark.parametrize("value", NOT_EVENTS)
async def test_no_event(
    redis: RedisClient, caplog: pytest.LogCaptureFixture, value: bytes | None
) -> None:
    """What is no event is the handler's to refuse, each time that it comes."""
    work = Work(redis)
    for _ in range(2):
        assert await work.handle(delivery(value)) == 7
    work.errors = [ValueError("refused")]
    with pytest.raises(ValueError, match="refused"):
        await work.handle(delivery(value))
    assert work.runs == 3
    assert await redis.scan_pattern("*") == []
    assert len([r for r in caplog.records if "handled unprotected" in r.getMessage()]) == 3


@pytest.mark.parametrize("event_type", [None, 7, "", [], {"a": 1}, "\ud800", "t" * 20_000])
async def test_event_without_a_type(redis: RedisClient, event_type: object) -> None:
    """An event whose type can't be read is protected like any other."""
    work = Work(redis)
    assert await work.handle(delivery(raw(event_type=event_type))) == 7
    assert await work.handle(delivery(raw(event_type=event_type))) is None
    (key,) = await redis.scan_pattern("*")
    assert key.startswith("huleedu:idempotency:v2:result_service:unknown:")


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.text(min_size=1), st.dictionaries(st.text(), st.text() | st.floats(allow_nan=False)))
async def test_any_event(redis: RedisClient, event_type: str, data: dict[str, object]) -> None:
    """Whatever its type and its data are, an event is handled once."""
    message = delivery(raw(event_type=event_type, data={**data, "finite": 1}))
    work = Work(redis)
    try:
        generate_deterministic_event_id(message.value or b"")
    except ValueError:
        return
    assert await work.handle(message) == 7
    assert await work.handle(message) is None
    await redis.delete(*await redis.scan_pattern("*"))


@pytest.mark.parametrize(("ttls", "default"), [({"t": 0}, 60), ({"t": -1}, 60), (None, 0)])
def test_lifetime_that_redis_would_refuse(ttls: dict[str, int] | None, default: int) -> None:
    """A lifetime of nothing is refused when the service starts."""
    with pytest.raises(ValueError, match="can't be remembered"):
        IdempotencyConfig("s", event_type_ttls=ttls, default_ttl=default)


def test_configuration() -> None:
    """The defaults are those of the contract, and nothing is changed afterwards."""
    config = IdempotencyConfig("s")
    assert config.event_type_ttls is None
    assert (config.default_ttl, config.key_prefix) == (86_400, "huleedu:idempotency:v2")
    with pytest.raises(FrozenInstanceError):
        config.default_ttl = 1  # type: ignore[misc]
