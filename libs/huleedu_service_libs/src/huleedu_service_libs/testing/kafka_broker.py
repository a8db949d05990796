"""A Kafka for tests: no JVM, real sockets, faults on demand."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from enum import IntEnum
from types import TracebackType
from typing import Final, Self

from huleedu_service_libs.child_processes import signal_at_end_of_parent
from huleedu_service_libs.testing.kafka_mock_cluster import (
    LibrdkafkaNotFoundError,
    bundled_librdkafka,
)

# Only a process that never answers takes so long.
ANSWER_TIMEOUT_S: Final = 20.0
STOP_TIMEOUT_S: Final = 5.0


class KafkaBrokerError(Exception):
    """The mock cluster did not start, or refused a command; the message says why."""


class KafkaRequest(IntEnum):
    """Requests that can be made to fail, by their API key.

    https://kafka.apache.org/protocol.html#protocol_api_keys
    """

    PRODUCE = 0
    FETCH = 1
    LIST_OFFSETS = 2
    METADATA = 3
    OFFSET_COMMIT = 8
    OFFSET_FETCH = 9
    FIND_COORDINATOR = 10
    JOIN_GROUP = 11
    HEARTBEAT = 12
    SYNC_GROUP = 14
    INIT_PRODUCER_ID = 22


class KafkaBroker:
    """librdkafka's mock cluster with `brokers` brokers, each on a free loopback port.

    An async context manager around a process of its own, so that a broker can hang while the test
    goes on. It ends with the block, and on Linux also with the thread that entered it.

        async with KafkaBroker() as broker:
            await broker.create_topic("orders", partitions=3)
            await broker.go_away()          connections are cut and refused
            await broker.come_back()        the same ports, with all that was kept
            broker.hang()                   it accepts, and says nothing
            broker.resume()
            await broker.delay(0.5)         each answer comes half a second later
            await broker.fail(KafkaRequest.PRODUCE, NotLeaderForPartitionError.errno)

    A client that asks for a topic which does not exist creates it, with four partitions. Of each
    partition the last 5 MiB are kept. Sizes, sequences of idempotent producers, transactions, SASL,
    TLS and replication are not there to be tested: the library's README has the whole list.
    `hang()` and `resume()` hold for all that arrives, commands included: resume first.
    """

    def __init__(self, *, brokers: int = 1) -> None:
        self._brokers = brokers
        self._process: asyncio.subprocess.Process | None = None
        self._asking = asyncio.Lock()
        self.bootstrap_servers = ""
        """`127.0.0.1:<port>,…`; the same for as long as the block lasts."""

    @property
    def pid(self) -> int:
        """The process id of the mock cluster."""
        return self._running().pid

    async def __aenter__(self) -> Self:
        try:
            bundled_librdkafka()
        except LibrdkafkaNotFoundError as error:
            raise KafkaBrokerError(str(error)) from None
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "huleedu_service_libs.testing.kafka_mock_cluster", str(self._brokers)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
            preexec_fn=signal_at_end_of_parent(signal.SIGKILL),
        )
        try:
            address = await self._answer(self._process)
        except BaseException:
            await self._end(self._process)
            raise
        self.bootstrap_servers = str(address)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process is not None:
            await self._end(self._process)

    async def create_topic(self, name: str, partitions: int = 1) -> None:
        """Create a topic with a replica on each broker.

        Raises KafkaBrokerError where it exists.
        """
        await self._ask("create_topic", name, partitions)

    async def go_away(self) -> None:
        """Cut all connections and refuse new ones."""
        await self._ask("go_away")

    async def come_back(self) -> None:
        """Listen again on the same ports, with all records, groups and offsets."""
        await self._ask("come_back")

    async def delay(self, round_trip_s: float) -> None:
        """Answer each request so much later from now on; 0 for at once."""
        await self._ask("delay", round(round_trip_s * 1000))

    async def fail(self, request: KafkaRequest, error_code: int, times: int = 1) -> None:
        """Answer the next `times` requests of this kind, from whomever, with the error.

        `error_code` is the protocol's, for example `aiokafka.errors.CoordinatorNotAvailableError
        .errno`; the request has no effect.
        """
        await self._ask("fail", request.value, error_code, times)

    def hang(self) -> None:
        """SIGSTOP: the kernel goes on accepting connections, and nothing is answered."""
        process = self._running()
        process.send_signal(signal.SIGSTOP)
        # A thread on another core may answer until it is told; this returns when all have stopped.
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """SIGCONT: what has come meanwhile is answered now."""
        self._running().send_signal(signal.SIGCONT)

    def _running(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            raise RuntimeError("the mock cluster is not running")
        return self._process

    async def _ask(self, command: str, *arguments: str | int) -> None:
        process = self._running()
        if process.stdin is None:
            raise RuntimeError("the mock cluster has no standard input")
        async with self._asking:
            process.stdin.write(json.dumps([command, *arguments]).encode() + b"\n")
            await process.stdin.drain()
            problem = await self._answer(process)
        if problem is not None:
            raise KafkaBrokerError(problem)

    async def _answer(self, process: asyncio.subprocess.Process) -> str | None:
        if process.stdout is None:
            raise RuntimeError("the mock cluster has no standard output")
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            line = await process.stdout.readline()
        if not line:
            raise KafkaBrokerError("the mock cluster has ended; standard error says why")
        answer: str | None = json.loads(line)
        return answer

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        with contextlib.suppress(ProcessLookupError):
            # A stopped process does not see the end of its input.
            process.send_signal(signal.SIGCONT)
        if process.stdin is not None:
            process.stdin.close()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
