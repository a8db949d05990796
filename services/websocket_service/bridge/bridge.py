"""The task that brings events from Kafka to the users.

What always holds:

1. An offset is committed only when everything before it in its partition is done: published, or
   set aside with its dead letter confirmed.
2. What is not done is read again from Kafka; by the event's id Redis knows what was published.
3. Whatever Kafka or Redis do, the task goes on until its context ends.
"""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Final, NoReturn, Self

from huleedu_service_libs.logging_utils import create_service_logger
from services.websocket_service.bridge.protocols import EventLogError, EventLogProtocol, JoinGroup
from services.websocket_service.bridge.records import EventRecord
from services.websocket_service.bridge.relay import Relay
from services.websocket_service.bridge.statistics import BridgeCounts, BridgeStatistics, Stage
from services.websocket_service.retry_delays import MAX_DELAY_S, RetryDelays

logger = create_service_logger(__name__)

PROBE_INTERVAL_S: Final = 5.0
UNHEARD_PROBE_INTERVAL_S: Final = 0.5
# By then the addresses that Kafka's client remembers may be those of nobody, or a task of its own
# that fetches may have ended.
REJOIN_AFTER_S: Final = 20.0
# Both are within what the group gives a member, and what a shutdown gives a task.
REVOCATION_PATIENCE_S: Final = 3.0
FINISH_TIMEOUT_S: Final = 1.0


class Bridge:
    """Runs for as long as its context; entered at once, also while Kafka is away.

    Leaving it lets the batch in flight be published and committed, for `FINISH_TIMEOUT_S`.
    """

    def __init__(
        self,
        join_group: JoinGroup,
        relay: Relay,
        counts: BridgeCounts,
        *,
        rejoin_after_s: float = REJOIN_AFTER_S,
    ) -> None:
        self._join_group = join_group
        self._relay = relay
        self._counts = counts
        self._rejoin_after_s = rejoin_after_s
        # Held from the first publication of a batch to its commit.
        self._relaying = asyncio.Lock()
        self._uncommitted: dict[int, int] = {}
        # Partitions of which something comes again; other partitions' batches go on between.
        self._unfinished: set[int] = set()
        self._lag: Mapping[int, int] = {}
        self._heard = False
        self._well_at = 0.0
        self._probe_at = 0.0
        self._troubles: dict[Stage, str] = {}
        self._running: asyncio.Task[NoReturn] | None = None

    async def __aenter__(self) -> Self:
        self._running = asyncio.create_task(self._run(), name="kafka-bridge")
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        running, self._running = self._running, None
        if running is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FINISH_TIMEOUT_S):
                await self._relaying.acquire()
        # More than once: Kafka's client may take a cancellation for one of its own.
        while not running.done():
            running.cancel()
            await asyncio.wait({running}, timeout=FINISH_TIMEOUT_S)

    @property
    def hears_kafka(self) -> bool:
        """Whether Kafka has answered to the last question, and the group has taken us in."""
        return self._heard

    def statistics(self) -> BridgeStatistics:
        """What has been done, and how things stand."""
        return BridgeStatistics(
            events=dict(self._counts.events),
            failures=dict(self._counts.failures),
            kafka_heard=self._heard,
            lag=sum(self._lag.values()),
            partitions=len(self._lag),
        )

    async def _run(self) -> NoReturn:
        loop = asyncio.get_running_loop()
        delays = RetryDelays()
        while True:
            joined_at = loop.time()
            try:
                async with self._join_group(self._before_revocation) as log:
                    await self._attend(log)
            except EventLogError as error:
                self._failed(Stage.FETCH, str(error))
            except Exception:
                # The last boundary of this task: whatever it is, events must not stay behind.
                logger.exception("the bridge failed; it starts again")
                self._counts.failures[Stage.FETCH] += 1
            self._heard, self._lag = False, {}
            self._uncommitted.clear()
            self._unfinished.clear()
            if loop.time() - joined_at > MAX_DELAY_S:
                delays.reset()
            await asyncio.sleep(delays.next_delay_s())

    async def _attend(self, log: EventLogProtocol) -> NoReturn:
        """Be a member of the group until Kafka fails: raises EventLogError."""
        loop = asyncio.get_running_loop()
        delays = RetryDelays()
        commits = RetryDelays()
        self._well_at = self._probe_at = commit_at = committed_at = loop.time()
        while True:
            batch = await log.next_batch()
            if batch:
                self._well_at = loop.time()
            async with self._relaying:
                finished = await self._relay_batch(log, batch)
                # Events need not wait for commits: without them they come again, and that is all.
                if loop.time() >= commit_at:
                    if await self._commit(log):
                        commits.reset()
                        committed_at = loop.time()
                    else:
                        commit_at = loop.time() + commits.next_delay_s()
            if commit_at - committed_at > self._rejoin_after_s:
                # Kafka's client may hold on to partitions that have been others' for long.
                raise EventLogError("no commit for long: joining the group anew")
            if loop.time() >= self._probe_at:
                await self._probe(log)
            if finished:
                delays.reset()
            else:
                await asyncio.sleep(delays.next_delay_s())

    async def _relay_batch(
        self, log: EventLogProtocol, batch: Mapping[int, Sequence[EventRecord]]
    ) -> bool:
        """True where all of it is done; the rest comes again."""
        if not batch:
            return True
        relayed = await self._relay.relay(batch)
        self._unfinished = self._unfinished - batch.keys() | relayed.unfinished
        for stage in (Stage.PUBLISH, Stage.DEAD_LETTER):
            if stage in relayed.failures:
                self._failed(stage, relayed.failures[stage])
            elif not self._unfinished:
                self._recovered(stage)
        self._uncommitted |= relayed.offsets
        log.rewind({partition: relayed.offsets[partition] for partition in relayed.unfinished})
        return not relayed.unfinished

    async def _commit(self, log: EventLogProtocol) -> bool:
        """True where nothing is left to be committed."""
        if not self._uncommitted:
            return True
        try:
            await log.commit(self._uncommitted)
        except EventLogError as error:
            self._failed(Stage.COMMIT, str(error))
            return False
        self._uncommitted.clear()
        self._recovered(Stage.COMMIT)
        return True

    async def _before_revocation(self) -> None:
        """Whoever gets our partitions goes on where we have committed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REVOCATION_PATIENCE_S), self._relaying:
                pass
        self._uncommitted.clear()
        self._unfinished.clear()

    async def _probe(self, log: EventLogProtocol) -> None:
        """Ask Kafka something, and note whether it answers.

        Its client connects anew without a word. Raises EventLogError when for long there was no
        answer, or no event though some wait.
        """
        loop = asyncio.get_running_loop()
        try:
            lag = await log.lag()
        except EventLogError as error:
            self._heard = False
            self._failed(Stage.FETCH, str(error))
        else:
            self._heard = lag is not None
            self._lag = lag or {}
            if self._heard:
                self._recovered(Stage.FETCH)
                if not any(self._lag.values()):
                    self._well_at = loop.time()
        if loop.time() - self._well_at > self._rejoin_after_s:
            raise EventLogError("nothing has come for long: joining the group anew")
        self._probe_at = loop.time() + (
            PROBE_INTERVAL_S if self._heard else UNHEARD_PROBE_INTERVAL_S
        )

    def _failed(self, stage: Stage, cause: str) -> None:
        self._counts.failures[stage] += 1
        # Once, however often the same happens, until it is over.
        if self._troubles.get(stage) != cause:
            self._troubles[stage] = cause
            logger.warning("the bridge is held up", stage=stage.value, cause=cause)

    def _recovered(self, stage: Stage) -> None:
        if self._troubles.pop(stage, None) is not None:
            logger.info("the bridge goes on", stage=stage.value)
