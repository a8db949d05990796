"""Events to Kafka, in time or not at all."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, Self

from aiokafka.errors import KafkaTimeoutError, MessageSizeTooLargeError

from common_core.events.envelope import EventEnvelope
from huleedu_service_libs.kafka_link import KafkaLink
from huleedu_service_libs.kafka_settings import KafkaConnection
from huleedu_service_libs.observability import inject_trace_context

__all__ = ["MAX_RECORD_BYTES", "KafkaBus"]

MAX_RECORD_BYTES: Final = 1_000_000
"""Key, value and headers of one record; what is around them fits below a broker's own default."""


class KafkaBus:
    """Publishes events: `start()` and `stop()`, or an async context manager.

    `start()` neither waits for Kafka nor fails while it is away: a task of the bus connects, and
    tries again for as long as it takes. `stop()` waits up to `timeout_s` for what is on its way.

    `connection` tells how to get in where that needs more than an address; the address is
    `bootstrap_servers` all the same. Raises ValueError for one that can't be.

    Records of one key and topic are written in the order of the calls, also of concurrent ones,
    for as long as none of them fails. A record whose acknowledgement was lost is sent again, and
    may be there twice: readers tell that by the `event_id`.
    """

    def __init__(
        self,
        *,
        client_id: str,
        bootstrap_servers: str,
        connection: KafkaConnection | None = None,
        timeout_s: float = 5,
    ) -> None:
        self._client_id = client_id
        self._connection = (
            KafkaConnection(bootstrap_servers=bootstrap_servers)
            if connection is None
            else replace(connection, bootstrap_servers=bootstrap_servers)
        )
        self._timeout_s = timeout_s
        self._link: KafkaLink | None = None
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    @property
    def connected(self) -> bool:
        """Whether Kafka answered when it was last asked: every 2 s, and when connecting."""
        return self._link is not None and self._link.connected

    async def start(self) -> None:
        """Begin to connect. Raises RuntimeError where the bus is started already."""
        if self._link is not None:
            raise RuntimeError("the KafkaBus is started already")
        self._link = KafkaLink(
            self._connection, client_id=self._client_id, timeout_s=self._timeout_s
        )

    async def stop(self) -> None:
        """Finish what is on its way, and close; publishing raises RuntimeError from now on."""
        link, self._link = self._link, None
        if link is not None:
            await link.stop()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def publish(
        self,
        topic: str,
        envelope: EventEnvelope[Any],
        key: str | None = None,
        headers: Mapping[str, str | bytes] | None = None,
    ) -> None:
        """Write the event as JSON; return once all in-sync replicas have it.

        The current span's trace context goes into the metadata of what is written, unless there
        is a `traceparent` already. Events of one key go to one partition, those without a key to
        any.

        Raises aiokafka's KafkaError within `timeout_s`: MessageSizeTooLargeError at once, others as
        brokers put it or where none answers. What has failed may be written even so, if a request
        had begun; none begins long after `timeout_s`. Raises RuntimeError before `start()` and
        after `stop()`.
        """
        link = self._link
        if link is None:
            raise RuntimeError("the KafkaBus is not started: use it within `async with`")
        value = _with_trace_context(envelope).model_dump_json().encode()
        encoded_key = None if key is None else key.encode()
        encoded_headers = [
            (name, text.encode() if isinstance(text, str) else text)
            for name, text in (headers or {}).items()
        ]
        # aiokafka looks at the size only once it knows the topic's partitions.
        size = len(value) + len(encoded_key or b"")
        size += sum(len(name.encode()) + len(content) for name, content in encoded_headers)
        if size > MAX_RECORD_BYTES:
            raise MessageSizeTooLargeError(
                f"an event for {topic} has {size} bytes, the limit is {MAX_RECORD_BYTES}"
            )
        outcome = "it was not sent"
        try:
            async with asyncio.timeout(self._timeout_s):
                # One after the other, until they are queued: waiting for a producer, for the
                # topic's partitions or for room would let a later one pass.
                async with self._turns[topic]:
                    producer = await link.producer()
                    acknowledgement = await producer.send(
                        topic, value, key=encoded_key, headers=encoded_headers
                    )
                outcome = "it may be written"
                await acknowledgement
        except TimeoutError:
            raise KafkaTimeoutError(
                f"no acknowledgement of an event for {topic} within {self._timeout_s:g} s: "
                f"{outcome}"
            ) from None


def _with_trace_context(envelope: EventEnvelope[Any]) -> EventEnvelope[Any]:
    metadata = dict(envelope.metadata or {})
    if "traceparent" not in metadata:
        inject_trace_context(metadata)
    return envelope.model_copy(update={"metadata": metadata or None})
