"""Kafka handlers that handle each event once, however often it is delivered."""

import functools
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Concatenate, Final, NamedTuple, Protocol, TypeAlias, TypeVar

from huleedu_service_libs import strict_json
from huleedu_service_libs.bounded_ids import is_bounded_id
from huleedu_service_libs.event_claims import EventClaims
from huleedu_service_libs.event_utils import generate_deterministic_event_id
from huleedu_service_libs.protocols import RedisClientProtocol

__all__ = [
    "ConfirmIdempotency",
    "EventHandler",
    "IdempotencyConfig",
    "IdempotentConsumer",
    "KafkaRecord",
    "idempotent_consumer",
]

logger = logging.getLogger(__name__)

# Of an event that names none.
_UNKNOWN_TYPE: Final = "unknown"

ConfirmIdempotency: TypeAlias = Callable[[], Awaitable[None]]
"""To be called when the event's work is done for good, for example after the commit."""


class KafkaRecord(Protocol):
    """What is asked of a message: aiokafka's `ConsumerRecord` is one."""

    @property
    def value(self) -> bytes | None:
        """The event as JSON; None for a tombstone."""
        ...


_Message = TypeVar("_Message", bound=KafkaRecord)
_Result = TypeVar("_Result")

EventHandler: TypeAlias = Callable[Concatenate[_Message, ...], Awaitable[_Result]]
"""Takes `confirm_idempotency` by keyword, which the type system can't say."""
IdempotentConsumer: TypeAlias = Callable[
    Concatenate[_Message, ...], Coroutine[Any, Any, _Result | None]
]
"""Takes the same without it."""


@dataclass(frozen=True, slots=True)
class IdempotencyConfig:
    """For how many seconds a service remembers which events it has handled.

    `event_type_ttls` is by event type as the events have it; the others have `default_ttl`. Raises
    ValueError for one that is no positive number.
    """

    service_name: str
    event_type_ttls: Mapping[str, int] | None = None
    default_ttl: int = 86_400
    key_prefix: str = "huleedu:idempotency:v2"

    def __post_init__(self) -> None:
        for ttl in (self.default_ttl, *(self.event_type_ttls or {}).values()):
            if ttl < 1:
                raise ValueError(f"an event can't be remembered for {ttl} s")

    def ttl_s(self, event_type: str) -> int:
        """For how long a handled event of this type is remembered."""
        return (self.event_type_ttls or {}).get(event_type, self.default_ttl)


def idempotent_consumer(
    redis_client: RedisClientProtocol,
    config: IdempotencyConfig,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> Callable[[EventHandler[_Message, _Result]], IdempotentConsumer[_Message, _Result]]:
    """Decorate `async def handler(message, *args, confirm_idempotency, **kwargs)`.

    Before the handler runs, the event is claimed in Redis, for 300 s, under the key
    `<prefix>:<service>:<event type, dots as underscores>:<generate_deterministic_event_id>`, all of
    it from the message's value. A delivery of an event that is claimed or done is a duplicate: it
    returns None, and the handler does not run. `await confirm_idempotency()` marks the event as
    done, for its type's TTL.

    A handler that fails or is cancelled without having confirmed runs once and gives the claim
    back within 5 s. What it raised is raised unchanged, so that the event can be delivered again.
    One that returns without having confirmed leaves the claim to lapse.

    Where Redis is away the handler runs unprotected, which is logged once. So it does for a message
    that is no event and has no key: what becomes of that is the handler's to say.

    `clock` is in seconds and monotonic.
    """

    def decorate(
        handler: EventHandler[_Message, _Result],
    ) -> IdempotentConsumer[_Message, _Result]:
        claims = EventClaims(redis_client, clock=clock)

        @functools.wraps(handler)
        async def consume(message: _Message, /, *args: Any, **kwargs: Any) -> _Result | None:
            try:
                event = _identify(message.value)
            except ValueError as error:
                logger.warning("handled unprotected: %s", error)
                return await handler(
                    message, *args, confirm_idempotency=_nothing_to_confirm, **kwargs
                )
            claim = claims.on(_key(config, event), config.ttl_s(event.type))
            try:
                if not await claim.take():
                    logger.info("duplicate: %s", claim.key)
                    return None
                return await handler(message, *args, confirm_idempotency=claim.confirm, **kwargs)
            except BaseException:
                await claims.release(claim)
                raise

        return consume

    return decorate


class _Event(NamedTuple):
    type: str
    id: str


def _identify(value: bytes | None) -> _Event:
    """Raises ValueError for what is no event."""
    if value is None:
        raise ValueError("event is a tombstone")
    event_id = generate_deterministic_event_id(value)
    event_type = strict_json.loads(value).get("event_type")
    return _Event(event_type if is_bounded_id(event_type) else _UNKNOWN_TYPE, event_id)


def _key(config: IdempotencyConfig, event: _Event) -> str:
    event_type = event.type.replace(".", "_")
    return f"{config.key_prefix}:{config.service_name}:{event_type}:{event.id}"


async def _nothing_to_confirm() -> None:
    """Of a message without a key."""
