"""The bridge between a topic and a publisher, both in memory."""

import asyncio
import logging
from datetime import UTC, datetime
from uuid import UUID

import pytest
from opentelemetry.trace import NoOpTracer

from common_core.events.envelope import EventEnvelope
from services.websocket_service.bridge.bridge import REJOIN_AFTER_S, Bridge
from services.websocket_service.bridge.protocols import (
    DeadLetterError,
    DeadLetterTooLargeError,
)
from services.websocket_service.bridge.relay import Relay
from services.websocket_service.bridge.statistics import BridgeCounts, Result, Stage
from services.websocket_service.tests.bridge.memory_kafka import (
    NOW_MS,
    MemoryDeadLetters,
    MemoryPublisher,
    MemoryTopic,
)

IDEMPOTENCY_TTL_S = 3600


class World:
    """A topic, a bridge that is not running yet, and both of its other ends."""

    def __init__(self, partitions: int = 1) -> None:
        self.topic = MemoryTopic(partitions)
        self.publisher = MemoryPublisher()
        self.dead_letters = MemoryDeadLetters()
        self.counts = BridgeCounts()
        self.bridge = self.another_bridge()

    def another_bridge(self, *, rejoin_after_s: float = REJOIN_AFTER_S) -> Bridge:
        """A process that starts after the one before has ended."""
        relay = Relay(
            self.publisher,
            self.dead_letters,
            self.counts,
            NoOpTracer(),
            idempotency_ttl_s=IDEMPOTENCY_TTL_S,
            now_s=lambda: NOW_MS / 1000,
        )
        return Bridge(self.topic.join, relay, self.counts, rejoin_after_s=rejoin_after_s)

    async def send(self, *numbers: int, partition: int = 0, age_s: float = 0) -> None:
        for number in numbers:
            await self.topic.append(event(number), partition, age_s)

    async def committed(self, *offsets: int) -> None:
        """Return once the group has come so far, by partition."""
        await self.topic.until(lambda: tuple(self.topic.committed.values()) == offsets)

    async def fails_again(self, stage: Stage) -> None:
        """Return once there was one more failure."""
        until_now = self.counts.failures[stage]
        await self.topic.until(lambda: self.counts.failures[stage] > until_now)


def event(number: int) -> bytes:
    envelope = EventEnvelope[dict[str, object]](
        event_id=UUID(int=number),
        event_type="teacher.notification.requested",
        source_service="result_service",
        event_timestamp=datetime(2026, 1, 1, tzinfo=UTC),
        data={
            "teacher_id": "teacher-1",
            "notification_type": "batch_results_ready",
            "category": "batch_progress",
            "priority": "high",
            "payload": {"n": number},
            "correlation_id": "correlation-1",
        },
    )
    return envelope.model_dump_json().encode()


async def test_events_are_published_in_order_and_committed() -> None:
    """Each goes out once, and the group has come past them all."""
    world = World()
    async with world.bridge as bridge:
        await world.send(1, 2, 3)
        await world.committed(3)
        await world.topic.until(lambda: bridge.hears_kafka)
    assert world.publisher.numbers() == [1, 2, 3]
    assert world.counts.events[Result.PUBLISHED] == 3


async def test_an_event_that_comes_again_is_counted_and_not_published() -> None:
    """A publisher that repeats itself is heard once."""
    world = World()
    async with world.bridge:
        await world.send(1, 1, 2)
        await world.committed(3)
    assert world.publisher.numbers() == [1, 2]
    assert world.counts.events[Result.DUPLICATE] == 1


async def test_nothing_is_committed_that_was_not_published() -> None:
    """While Redis fails, the group stays before the first event that failed, in each partition."""
    world = World(partitions=2)
    world.publisher.fail_from.extend([1, 0])
    await world.send(1, 2, partition=0)
    await world.send(3, partition=1)
    async with world.bridge:
        await world.committed(2, 1)
    assert world.topic.commits[0] == {0: 1, 1: 0}
    assert sorted(world.publisher.numbers()) == [1, 2, 3]
    assert world.counts.failures[Stage.PUBLISH] == 2


async def test_a_dead_letter_that_is_not_confirmed_holds_its_partition_back() -> None:
    """Others go on; behind it events are published, and committed when it is confirmed."""
    world = World(partitions=2)
    world.dead_letters.refuse.append(DeadLetterError("not now"))
    await world.send(1)
    await world.topic.append(b"nonsense")
    await world.send(2)
    await world.send(3, partition=1)
    async with world.bridge:
        await world.committed(3, 1)
    assert world.topic.commits[0] == {0: 1, 1: 1}
    assert sorted(world.publisher.numbers()) == [1, 2, 3]
    assert [letter.value for letter in world.dead_letters.letters] == [b"nonsense"]
    assert world.counts.failures[Stage.DEAD_LETTER] == 1


async def test_what_holds_a_partition_back_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """It is over when that partition goes on, and not when another one does."""
    caplog.set_level(logging.INFO)
    world = World(partitions=2)
    world.topic.in_turns = True
    world.dead_letters.refuse.extend([DeadLetterError("not now")] * 1000)
    await world.topic.append(b"nonsense")
    async with world.bridge:
        for number in range(1, 4):
            await world.fails_again(Stage.DEAD_LETTER)
            await world.send(number, partition=1)
            await world.committed(0, number)
        await world.fails_again(Stage.DEAD_LETTER)
        world.dead_letters.refuse.clear()
        await world.committed(1, 3)
    told = [str(record.msg) for record in caplog.records]
    assert len([line for line in told if "the bridge is held up" in line]) == 1
    assert len([line for line in told if "the bridge goes on" in line]) == 1


async def test_a_dead_letter_that_is_too_large_goes_without_its_content() -> None:
    """The partition goes on all the same."""
    world = World()
    world.dead_letters.refuse.append(DeadLetterTooLargeError("too large"))
    async with world.bridge:
        await world.topic.append(b"nonsense")
        await world.committed(1)
    [letter] = world.dead_letters.letters
    assert letter.value is None
    assert world.counts.events[Result.DEAD_LETTERED] == 1


async def test_an_event_older_than_idempotency_keys_is_set_aside() -> None:
    """Nobody could tell whether it was shown before."""
    world = World()
    async with world.bridge:
        await world.send(1, age_s=IDEMPOTENCY_TTL_S)
        await world.send(2, age_s=IDEMPOTENCY_TTL_S - 1)
        # From a producer whose clock is ahead, and from one that writes none.
        await world.send(3, age_s=-60)
        await world.send(4, age_s=NOW_MS / 1000 + 1)
        await world.committed(4)
    assert world.publisher.numbers() == [2, 3, 4]
    [letter] = world.dead_letters.letters
    assert dict(letter.headers)["dead-letter-reason"] == b"too_old"


async def test_commits_that_fail_delay_no_event() -> None:
    """Events go on, and what is not committed is committed later."""
    world = World()
    world.topic.refuse_to_commit.extend(["not now"] * 3)
    async with world.bridge:
        await world.send(1)
        await world.send(2)
        await world.committed(2)
    assert world.publisher.numbers() == [1, 2]
    assert world.counts.failures[Stage.COMMIT] == 3


async def test_a_member_whose_commits_fail_for_long_joins_anew() -> None:
    """What it had published comes again, is recognised, and is committed in the end."""
    world = World()
    world.topic.refuse_to_commit.extend(["not now"] * 3)
    async with world.another_bridge(rejoin_after_s=0):
        await world.send(1)
        await world.committed(1)
    assert world.topic.joins == 4
    assert world.publisher.numbers() == [1]
    assert world.counts.events[Result.DUPLICATE] == 3


async def test_a_member_that_hears_nothing_for_long_joins_anew() -> None:
    """Kafka's client never looks for brokers that are elsewhere now."""
    world = World()
    world.topic.refuse_to_answer.extend(["no answer"] * 2)
    async with world.another_bridge(rejoin_after_s=0):
        await world.topic.until(lambda: world.topic.joins > 2)
        await world.send(1)
        await world.committed(1)
    assert world.publisher.numbers() == [1]


async def test_a_group_that_can_not_be_joined_or_read_is_joined_anew() -> None:
    """Whatever was read and not published comes again from where the group stands."""
    world = World()
    world.topic.refuse_to_join.extend(["away", "away"])
    world.topic.refuse_to_read.extend(["corrupt"])
    await world.send(1, 2)
    async with world.bridge:
        await world.committed(2)
    assert world.topic.joins == 4
    assert world.publisher.numbers() == [1, 2]
    assert world.counts.failures[Stage.FETCH] == 3


async def test_what_nobody_has_thought_of_ends_nothing() -> None:
    """An error of another kind is logged, and the bridge begins anew."""
    world = World()
    world.publisher.raise_next = LookupError("odd")
    await world.send(1)
    async with world.bridge:
        await world.committed(1)
    assert world.publisher.numbers() == [1]


async def test_kafka_that_does_not_answer_is_shown() -> None:
    """A question without an answer is seen at once, and so is the next answer."""
    world = World()
    world.topic.refuse_to_answer.append("silence")
    async with world.bridge as bridge:
        await world.topic.until(lambda: bridge.hears_kafka)
        statistics = bridge.statistics()
    assert statistics.failures[Stage.FETCH] == 1
    assert statistics.kafka_heard
    assert statistics.partitions == 1
    assert statistics.lag == 0


async def test_the_end_waits_for_the_batch_in_flight() -> None:
    """What is being published when the bridge is told to end is committed."""
    world = World()
    world.publisher.held = asyncio.Event()
    await world.send(1)
    async with world.bridge:
        await world.publisher.entered.wait()
        asyncio.get_running_loop().call_soon(world.publisher.held.set)
    assert world.topic.committed == {0: 1}


async def test_the_end_does_not_wait_for_ever() -> None:
    """A publisher that hangs is left behind, and its batch is not committed."""
    world = World()
    world.publisher.held = asyncio.Event()
    await world.send(1)
    async with world.bridge:
        await world.publisher.entered.wait()
    assert world.topic.committed == {0: 0}
    world.publisher.held = None
    async with world.another_bridge():
        await world.committed(1)
    assert world.publisher.numbers() == [1]


async def test_partitions_are_given_away_after_the_batch_in_flight() -> None:
    """Who gets them begins behind what was published."""
    world = World()
    world.publisher.held = asyncio.Event()
    await world.send(1)
    async with world.bridge:
        await world.publisher.entered.wait()
        assert world.topic.revoke is not None
        asyncio.get_running_loop().call_soon(world.publisher.held.set)
        await world.topic.revoke()
        assert world.topic.committed == {0: 1}
