"""Keeps a producer at hand, whatever Kafka does."""

import asyncio
import logging
import random
from typing import Final

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError, ProducerClosed

from huleedu_service_libs.kafka_reachability import why_unreachable
from huleedu_service_libs.kafka_settings import KafkaConnection

# Where brokers hang, a record waits for the request before it, and then for a connection.
REQUEST_TIMEOUT_SHARE: Final = 0.4
MAX_RETRY_INTERVAL_S: Final = 1.0
WATCH_INTERVAL_S: Final = 2.0

logger = logging.getLogger(__name__)


class KafkaLink:
    """Opens a producer, and another one once no broker that it knows answers; `stop()` it once.

    The next one is opened when the one before has no records left: so they keep their order.
    """

    def __init__(self, connection: KafkaConnection, *, client_id: str, timeout_s: float) -> None:
        self._connection = connection
        self._client_id = client_id
        self._timeout_s = timeout_s
        self._request_timeout_s = REQUEST_TIMEOUT_SHARE * timeout_s
        self._opened: asyncio.Future[AIOKafkaProducer] = asyncio.Future()
        self._stopping: asyncio.Future[None] = asyncio.Future()
        self._away: str | None = ""  # not known yet
        self._keeper = asyncio.create_task(self._keep(), name="kafka-link")

    @property
    def connected(self) -> bool:
        """Whether Kafka answered when it was last asked: every 2 s, and when connecting."""
        return self._opened.done()

    async def producer(self) -> AIOKafkaProducer:
        """The producer, as soon as there is one; raises ProducerClosed where the link stops."""
        return await asyncio.shield(self._opened)

    async def stop(self) -> None:
        """Finish what is on its way within `timeout_s`, and close."""
        self._stopping.set_result(None)
        if self._opened.done():
            self._opened = asyncio.get_running_loop().create_future()
        self._opened.set_exception(ProducerClosed("the KafkaBus was stopped"))
        self._opened.exception()  # nobody may be waiting
        # It is not cancelled at once: that would leave the socket of a new connection open.
        await asyncio.wait({self._keeper}, timeout=self._timeout_s)
        self._keeper.cancel()
        await asyncio.wait({self._keeper})

    async def _keep(self) -> None:
        while not self._stopping.done():
            try:
                await self._serve()
            except Exception as error:
                # Who answers may be no Kafka at all, and a parser's errors are of any kind.
                logger.debug("Kafka's client failed", exc_info=True)
                self._note(away=str(error) or repr(error))
            pause_s = random.uniform(0.5, 1.0) * MAX_RETRY_INTERVAL_S
            await asyncio.wait({self._stopping}, timeout=pause_s)

    async def _serve(self) -> None:
        producer = AIOKafkaProducer(
            **self._connection.client_options(),
            client_id=self._client_id,
            acks="all",
            # An idempotent one never stops trying to send what it was handed: a record would come
            # out long after its publisher was told that it failed.
            enable_idempotence=False,
            request_timeout_ms=round(self._request_timeout_s * 1000),
        )
        try:
            await producer.start()
            if not self._stopping.done():
                self._note(away=None)
                self._opened.set_result(producer)
            await self._watch(producer)
        except KafkaConnectionError as error:
            reason = await why_unreachable(self._connection, timeout_s=self._request_timeout_s)
            raise KafkaConnectionError(reason or str(error)) from None
        finally:
            if self._opened.done() and not self._stopping.done():
                self._opened = asyncio.get_running_loop().create_future()
            # A connection that is not read from takes its time to close: that goes on by itself.
            closing = asyncio.create_task(producer.stop(), name="kafka-close")
            await asyncio.wait({closing}, timeout=self._timeout_s)

    async def _watch(self, producer: AIOKafkaProducer) -> None:
        """Until the link stops; raises KafkaConnectionError where no broker answers any more.

        Brokers may come back at other addresses, and a producer asks only those that it knows.
        """
        while not self._stopping.done():
            await asyncio.wait({self._stopping}, timeout=WATCH_INTERVAL_S)
            answer = producer.client.force_metadata_update()
            await asyncio.wait(
                {answer, self._stopping},
                timeout=self._timeout_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if not self._stopping.done() and not (answer.done() and answer.result()):
                raise KafkaConnectionError("no broker answers any more")

    def _note(self, *, away: str | None) -> None:
        """Log what is new: Kafka answers, or why it does not."""
        if away is None and self._away is not None:
            logger.info("Kafka answers")
        elif away != self._away:
            logger.warning("Kafka is away, trying again: %s", away)
        self._away = away
