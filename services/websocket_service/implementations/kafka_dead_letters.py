"""The dead-letter topic over aiokafka."""

import asyncio
from types import TracebackType
from typing import Final, Self

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError, RecordListTooLargeError

from huleedu_service_libs.kafka_settings import KafkaConnection
from services.websocket_service.bridge.poison import DeadLetter
from services.websocket_service.bridge.protocols import DeadLetterError, DeadLetterTooLargeError

SEND_TIMEOUT_S: Final = 5.0
# Sooner, so that the client says why where it knows, of a topic that does not exist for example.
REQUEST_TIMEOUT_S: Final = 4.0
CLOSE_TIMEOUT_S: Final = 0.5
# The broker decides; this only has to be more than any of them takes.
_MAX_RECORD_BYTES: Final = 128 * 1024 * 1024


class KafkaDeadLetters:
    """A `DeadLettersProtocol`; an async context manager.

    It connects when there is the first one to send, and anew after each failure.
    """

    def __init__(self, connection: KafkaConnection, topic: str, *, client_id: str) -> None:
        self._connection = connection
        self._topic = topic
        self._client_id = client_id
        self._producer: AIOKafkaProducer | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._close()

    async def send(self, letter: DeadLetter) -> None:
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                producer = self._producer or await self._connect()
                # aiokafka sends no record that has neither.
                value = b"" if letter.key is None and letter.value is None else letter.value
                await producer.send_and_wait(
                    self._topic, value, key=letter.key, headers=list(letter.headers)
                )
        except (MessageSizeTooLargeError, RecordListTooLargeError) as error:
            raise DeadLetterTooLargeError(str(error)) from error
        except (KafkaError, OSError, TimeoutError, ValueError) as error:
            await self._close()
            raise DeadLetterError(
                f"{self._topic} does not take it: {str(error) or type(error).__name__}"
            ) from error

    async def _connect(self) -> AIOKafkaProducer:
        self._producer = AIOKafkaProducer(
            client_id=self._client_id,
            acks="all",
            max_request_size=_MAX_RECORD_BYTES,
            request_timeout_ms=round(REQUEST_TIMEOUT_S * 1000),
            **self._connection.client_options(),
        )
        await self._producer.start()
        return self._producer

    async def _close(self) -> None:
        producer, self._producer = self._producer, None
        if producer is None:
            return
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await producer.stop()
        except TimeoutError:
            # It waits for what it has sent to be answered.
            await producer.client.close()
