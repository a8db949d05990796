"""One batch on its way from Kafka to the users, or aside."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Final

from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, use_span

from huleedu_service_libs.error_handling import HuleEduError
from huleedu_service_libs.logging_utils import create_service_logger
from huleedu_service_libs.notifications import Notification, NotificationReceipt
from huleedu_service_libs.observability import inject_trace_context, use_trace_context
from services.websocket_service.bridge.events import TeacherEvent, read_event
from services.websocket_service.bridge.poison import Poison, PoisonReason, dead_letter
from services.websocket_service.bridge.protocols import (
    DeadLetterError,
    DeadLettersProtocol,
    DeadLetterTooLargeError,
)
from services.websocket_service.bridge.records import EventRecord
from services.websocket_service.bridge.statistics import BridgeCounts, Result, Stage
from services.websocket_service.internal_api.protocols import Outcome, PublisherProtocol
from services.websocket_service.protocols import BackplaneUnavailableError

logger = create_service_logger(__name__)

_MS_PER_S: Final = 1000

Fate = NotificationReceipt | Poison | BackplaneUnavailableError
"""Published before now or now; never to be; or to be tried again."""


@dataclass(frozen=True, slots=True)
class Relayed:
    """How far a batch has come."""

    offsets: Mapping[int, int]
    """By partition the first offset that is not done."""
    unfinished: frozenset[int]
    """Partitions of which something of this batch is not done."""
    failures: Mapping[Stage, str]
    """Why, where something failed."""


class Relay:
    """Publishes events, and sets aside those that can't be published.

    Within a partition everything before an event's offset is done before the event counts as done:
    it has been published, or its dead letter is confirmed.
    """

    def __init__(
        self,
        publisher: PublisherProtocol,
        dead_letters: DeadLettersProtocol,
        counts: BridgeCounts,
        tracer: Tracer,
        *,
        idempotency_ttl_s: float,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._publisher = publisher
        self._dead_letters = dead_letters
        self._counts = counts
        self._tracer = tracer
        self._idempotency_ttl_s = idempotency_ttl_s
        self._now_s = now_s

    async def relay(self, batch: Mapping[int, Sequence[EventRecord]]) -> Relayed:
        """Bring a batch as far as it goes; what fails is not tried again here."""
        fates = iter(await self._publish(list(chain.from_iterable(batch.values()))))
        offsets: dict[int, int] = {}
        unfinished: set[int] = set()
        failures: dict[Stage, str] = {}
        for partition, records in batch.items():
            next_offset = records[0].offset
            for record, fate in [(record, next(fates)) for record in records]:
                if not await self._is_done(record, fate, failures):
                    unfinished.add(partition)
                    break
                next_offset = record.offset + 1
            offsets[partition] = next_offset
        return Relayed(offsets, frozenset(unfinished), failures)

    async def _is_done(self, record: EventRecord, fate: Fate, failures: dict[Stage, str]) -> bool:
        match fate:
            case NotificationReceipt():
                self._counts.events[Result.DUPLICATE if fate.duplicate else Result.PUBLISHED] += 1
                return True
            case Poison():
                # Where one was not taken, the next ones would wait as long for nothing.
                return Stage.DEAD_LETTER not in failures and await self._is_set_aside(
                    record, fate, failures
                )
            case BackplaneUnavailableError():
                failures[Stage.PUBLISH] = str(fate)
                return False

    async def _is_set_aside(
        self, record: EventRecord, poison: Poison, failures: dict[Stage, str]
    ) -> bool:
        letter = dead_letter(record, poison)
        try:
            try:
                await self._dead_letters.send(letter)
            except DeadLetterTooLargeError:
                await self._dead_letters.send(letter.without_content())
        except DeadLetterError as error:
            failures[Stage.DEAD_LETTER] = str(error)
            return False
        self._counts.events[Result.DEAD_LETTERED] += 1
        logger.warning(
            "event set aside",
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            reason=poison.reason.value,
            detail=poison.detail,
            correlation_id=poison.correlation_id,
        )
        return True

    async def _publish(self, records: Sequence[EventRecord]) -> list[Fate]:
        """What became of each, all in one round trip."""
        read = [self._read(record) for record in records]
        spans: list[Span] = []
        notifications: list[Notification] = []
        for record, event in zip(records, read, strict=True):
            if isinstance(event, TeacherEvent):
                span, notification = self._traced(record, event)
                spans.append(span)
                notifications.append(notification)
        outcomes: Sequence[Outcome] = []
        try:
            if notifications:
                outcomes = await self._publisher.publish_each(notifications)
        finally:
            for span in spans[len(outcomes) :]:
                span.end()
        ended = iter(zip(spans, outcomes, strict=True))
        return [
            event if isinstance(event, Poison) else _fate(event, *next(ended)) for event in read
        ]

    def _read(self, record: EventRecord) -> TeacherEvent | Poison:
        event = read_event(record.value)
        age_s = self._now_s() - record.timestamp_ms / _MS_PER_S
        if isinstance(event, Poison) or record.timestamp_ms < 0 or age_s < self._idempotency_ttl_s:
            return event
        return Poison(
            PoisonReason.TOO_OLD,
            f"the event is {age_s:.0f} s old, and repetitions are recognised for "
            f"{self._idempotency_ttl_s:g} s",
            event.correlation_id,
        )

    def _traced(self, record: EventRecord, event: TeacherEvent) -> tuple[Span, Notification]:
        with use_trace_context(event.metadata) as parent:
            span = self._tracer.start_span(
                "bridge.publish_notification",
                context=parent,
                kind=SpanKind.CONSUMER,
                attributes={
                    "messaging.system": "kafka",
                    "messaging.destination.name": record.topic,
                    "messaging.destination.partition.id": str(record.partition),
                    "messaging.kafka.offset": record.offset,
                    "correlation_id": event.correlation_id,
                },
            )
            carrier: dict[str, str] = {}
            with use_span(span):
                inject_trace_context(carrier)
        return span, replace(event.notification, trace_context=carrier)


def _fate(event: TeacherEvent, span: Span, outcome: Outcome) -> Fate:
    match outcome:
        case NotificationReceipt():
            fate: Fate = outcome
            span.set_attribute("bridge.duplicate", outcome.duplicate)
        case HuleEduError():
            message = outcome.error_detail.message
            fate = Poison(PoisonReason.UNPUBLISHABLE, message, event.correlation_id)
            span.set_status(Status(StatusCode.ERROR, message))
        case BackplaneUnavailableError():
            fate = outcome
            span.set_status(Status(StatusCode.ERROR, str(outcome)))
    span.end()
    return fate
