"""What goes on while a connection is open: listen, write, read, each in a task of its own."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import datetime

from opentelemetry.trace import SpanKind, Tracer

from common_core.error_enums import ErrorCode
from huleedu_service_libs.error_handling import create_error_detail_with_context
from huleedu_service_libs.observability import use_trace_context
from services.websocket_service import frames
from services.websocket_service.close_reasons import (
    BINARY_FRAME,
    MESSAGE_TOO_BIG,
    PROTOCOL_VIOLATION,
    RATE_LIMITED,
    SLOW_CONSUMER,
    VIOLATIONS,
    CloseReason,
)
from services.websocket_service.connection import Connection
from services.websocket_service.continuity import Opening
from services.websocket_service.frames import Dialect, InvalidFrame
from services.websocket_service.hub import ConnectionHub
from services.websocket_service.outbox import OutboundFrame
from services.websocket_service.protocols import MessageListenerProtocol, SocketProtocol
from services.websocket_service.publication import Publication
from services.websocket_service.rate_limit import TokenBucket


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """What a client may send and how long it may take."""

    max_message_bytes: int
    messages_per_second: int
    message_burst: int
    heartbeat_s: float
    close_timeout_s: float
    retry_after_s: float


class Exchange:
    """Runs the tasks of one connection after the other; holds no state of its own."""

    def __init__(
        self,
        *,
        service: str,
        limits: SessionLimits,
        hub: ConnectionHub,
        listener: MessageListenerProtocol,
        tracer: Tracer,
        utc_now: Callable[[], datetime],
    ) -> None:
        self._service = service
        self._limits = limits
        self._hub = hub
        self._listener = listener
        self._tracer = tracer
        self._utc_now = utc_now

    async def run(
        self,
        socket: SocketProtocol,
        connection: Connection,
        payloads: AsyncIterator[bytes],
        opening: Opening,
    ) -> CloseReason:
        """Run the connection's tasks until one of them, or anybody else, gives a reason to end."""
        if connection.peer is not None:
            connection.peer.violated.add_done_callback(
                lambda violated: connection.close(
                    VIOLATIONS.get(violated.result(), PROTOCOL_VIOLATION)
                )
            )
        if connection.dialect is Dialect.V1:
            self._welcome(connection, opening)
        listening = asyncio.create_task(
            self._listener.listen(connection, payloads, opening), name=f"listen:{connection.id}"
        )
        reading = asyncio.create_task(self._read(socket, connection), name=f"read:{connection.id}")
        writing = asyncio.create_task(
            self._write(socket, connection), name=f"write:{connection.id}"
        )
        try:
            ends: list[asyncio.Future[CloseReason]] = [
                connection.closing,
                listening,
                reading,
                writing,
            ]
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for end in done:
                connection.close(end.result())
            await self._cancel(listening, reading)
            await self._flush(connection, writing)
        finally:
            await self._cancel(listening, reading, writing)
        return connection.closing.result()

    def _welcome(self, connection: Connection, opening: Opening) -> None:
        self._offer(
            connection,
            frames.welcome(
                connection_id=connection.id,
                user_id=connection.user_id,
                heartbeat_ms=round(self._limits.heartbeat_s * 1000),
                cursor=opening.cursor,
                resumed=opening.resumed,
                token_expires_at=connection.expires_at,
            ),
        )
        if opening.resync is not None:
            self._offer(connection, frames.resync(opening.resync, opening.cursor))

    async def _flush(self, connection: Connection, writing: asyncio.Task[CloseReason]) -> None:
        """Let what was already taken from Redis reach a client that is reading."""
        if connection.closing.result().code != SLOW_CONSUMER.code:
            connection.outbox.finish()
            await asyncio.wait([writing], timeout=self._limits.close_timeout_s)
            if writing.done():
                writing.result()  # a failed write is a defect, at the end too

    @staticmethod
    async def _cancel(*tasks: asyncio.Task[CloseReason]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    async def _write(self, socket: SocketProtocol, connection: Connection) -> CloseReason:
        """Write what is in the outbox, in order, until it is finished: then the reason stands."""
        loop = asyncio.get_running_loop()
        while (frame := await connection.outbox.take()) is not None:
            connection.writing_since = loop.time()
            if frame.publication is None:
                await socket.send(frame.text)
            else:
                with self._forwarding(connection, frame.publication):
                    await socket.send(frame.text)
                self._delivered(frame.publication, replayed=frame.replayed)
            connection.writing_since = None
            connection.last_written_at = loop.time()
        return connection.closing.result()

    @contextlib.contextmanager
    def _forwarding(self, connection: Connection, publication: Publication) -> Iterator[None]:
        """Continue the publisher's trace, where it has one, up to the socket."""
        carrier = publication.trace_context
        if carrier is None:
            yield
            return
        with (
            use_trace_context(carrier),
            self._tracer.start_as_current_span(
                "websocket.forward",
                kind=SpanKind.CONSUMER,
                attributes={
                    "websocket.connection_id": connection.id,
                    "messaging.message.body.size": len(publication),
                },
            ),
        ):
            yield

    def _delivered(self, publication: Publication, *, replayed: bool) -> None:
        counts = self._hub.counts
        counts.deliveries += 1
        counts.delivered_bytes += len(publication)
        if replayed:
            return
        if publication.published_at is not None:
            # Two hosts' clocks may disagree; a negative time helps nobody.
            latency_s = max(0.0, self._utc_now().timestamp() - publication.published_at)
        else:
            latency_s = asyncio.get_running_loop().time() - publication.received_at
        self._hub.latency.observe(latency_s)

    async def _read(self, socket: SocketProtocol, connection: Connection) -> CloseReason:
        """Take what the client sends, until it breaks a rule."""
        bucket = TokenBucket(
            rate=self._limits.messages_per_second,
            burst=self._limits.message_burst,
            clock=asyncio.get_running_loop().time,
        )
        while True:
            message = await socket.receive()
            if not isinstance(message, str):
                return BINARY_FRAME
            if len(message.encode()) > self._limits.max_message_bytes:
                return MESSAGE_TOO_BIG
            if not bucket.take():
                return RATE_LIMITED
            if connection.dialect is Dialect.V1 and not self._answer(connection, message):
                return SLOW_CONSUMER

    def _answer(self, connection: Connection, text: str) -> bool:
        parsed = frames.parse_client_frame(text)
        if not isinstance(parsed, InvalidFrame):
            return self._offer(connection, frames.pong(parsed.nonce))
        detail = create_error_detail_with_context(
            ErrorCode.VALIDATION_ERROR,
            parsed.message,
            self._service,
            "client_frame",
            connection.correlation_id,
            details={"field": parsed.field},
            capture_stack=False,
        )
        return self._offer(connection, frames.error(detail))

    @staticmethod
    def _offer(connection: Connection, text: str) -> bool:
        return connection.outbox.offer(OutboundFrame(text, len(text.encode())))
