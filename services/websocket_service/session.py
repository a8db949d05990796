"""The life of a WebSocket, from the upgrade to the one reason for its end.

Upgrade, origin, credential, admission, subscription (acknowledged by Redis), then the answer to
the upgrade: a client that sees the connection open misses nothing that is published from then
on. What was acquired is released in reverse order before the close frame is written, so that a
peer which takes its time holds nothing but its own socket.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import datetime

import structlog
from opentelemetry.trace import Span, SpanKind, Tracer

from common_core.error_enums import ErrorCode
from common_core.models.error_models import ErrorDetail
from huleedu_service_libs.auth.jwt_validation import JWTClaims
from huleedu_service_libs.error_handling import (
    HuleEduError,
    create_error_detail_with_context,
    raise_authentication_error,
    raise_authorization_error,
    raise_connection_error,
)
from huleedu_service_libs.logging_utils import create_service_logger
from huleedu_service_libs.observability import trace_operation, use_trace_context
from services.websocket_service import frames
from services.websocket_service.close_reasons import (
    BINARY_FRAME,
    CLIENT_CLOSED,
    CLIENT_GONE,
    DEFECT,
    MESSAGE_TOO_BIG,
    PROTOCOL_VIOLATION,
    RATE_LIMITED,
    SLOW_CONSUMER,
    VIOLATIONS,
    CloseReason,
    Reconnect,
    reason_for,
    reason_text,
)
from services.websocket_service.connection import Connection, UserId
from services.websocket_service.frames import Dialect, InvalidFrame
from services.websocket_service.hub import ConnectionHub
from services.websocket_service.origins import AllowedOrigins
from services.websocket_service.outbox import OutboundFrame
from services.websocket_service.protocols import (
    BackplaneProtocol,
    BackplaneUnavailableError,
    JWTValidatorProtocol,
    MessageListenerProtocol,
    SocketProtocol,
)
from services.websocket_service.publication import Publication
from services.websocket_service.rate_limit import TokenBucket
from services.websocket_service.upgrade import Upgrade

logger = create_service_logger(__name__)


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """What a client may send and how long it may take."""

    max_message_bytes: int
    messages_per_second: int
    message_burst: int
    heartbeat_s: float
    close_timeout_s: float
    retry_after_s: float


class SessionServer:
    """Serves one upgrade after the other; holds no state of its own."""

    def __init__(
        self,
        *,
        service: str,
        limits: SessionLimits,
        origins: AllowedOrigins,
        validator: JWTValidatorProtocol,
        hub: ConnectionHub,
        backplane: BackplaneProtocol,
        listener: MessageListenerProtocol,
        tracer: Tracer,
        utc_now: Callable[[], datetime],
    ) -> None:
        self._service = service
        self._limits = limits
        self._origins = origins
        self._validator = validator
        self._hub = hub
        self._backplane = backplane
        self._listener = listener
        self._tracer = tracer
        self._utc_now = utc_now

    async def serve(self, socket: SocketProtocol, upgrade: Upgrade) -> None:
        """Attend to a socket until it is closed. The server cancels this when the peer leaves."""
        with (
            self._hub.session(),
            structlog.contextvars.bound_contextvars(correlation_id=str(upgrade.correlation_id)),
            trace_operation(
                self._tracer,
                "websocket.connection",
                {"websocket.dialect": upgrade.dialect.value},
            ) as span,
        ):
            try:
                reason, detail = await self._live(socket, upgrade, span), None
            except HuleEduError as error:
                reason, detail = reason_for(error), error.error_detail
                self._refused(reason, detail)
            except Exception:
                reason, detail = DEFECT, None
                logger.exception("session failed")
            span.set_attribute("websocket.close_code", reason.code)
            await self._close(socket, upgrade, reason, detail)

    def _refused(self, reason: CloseReason, detail: ErrorDetail) -> None:
        why = detail.details.get("reason", detail.error_code.value.lower())
        self._hub.counts.refused[str(why)] += 1
        # Theirs to mend: a line. Ours: somebody's attention.
        write = logger.warning if reason.reconnect is Reconnect.AFTER_DELAY else logger.info
        write("handshake refused", close_code=reason.code, reason=why, message=detail.message)

    async def _live(self, socket: SocketProtocol, upgrade: Upgrade, span: Span) -> CloseReason:
        """Everything between the upgrade and the close frame; returns with all of it released.

        Raises HuleEduError for a refusal.
        """
        self._hub.check_node(upgrade.correlation_id)
        if not self._origins.allow(upgrade.origin):
            raise_authorization_error(
                self._service,
                "check_origin",
                "Origin not allowed",
                upgrade.correlation_id,
                reason="origin_not_allowed",
            )
        claims = self._authenticate(upgrade)
        user_id = UserId(claims.subject)
        with self._hub.admit(
            user_id=user_id,
            dialect=upgrade.dialect,
            expires_at=claims.expires_at,
            correlation_id=upgrade.correlation_id,
        ) as connection:
            connection.peer = upgrade.peer
            span.set_attribute("websocket.connection_id", connection.id)
            async with self._subscription(connection) as payloads:
                await socket.accept(upgrade.subprotocol)
                with self._opened(connection):
                    return await self._run(socket, connection, payloads)

    def _authenticate(self, upgrade: Upgrade) -> JWTClaims:
        tokens = upgrade.credentials.tokens
        result = "unverifiable"
        with trace_operation(self._tracer, "websocket.validate_token") as span:
            try:
                if upgrade.credentials.conflicting:
                    raise_authentication_error(
                        self._service,
                        "authenticate",
                        "Two different credentials",
                        upgrade.correlation_id,
                        reason="conflicting_credentials",
                    )
                if not tokens or not tokens[0]:
                    raise_authentication_error(
                        self._service,
                        "authenticate",
                        "Missing token",
                        upgrade.correlation_id,
                        reason="missing_token",
                    )
                claims = self._validator.validate(tokens[0], upgrade.correlation_id)
            except HuleEduError as error:
                result = str(error.error_detail.details.get("reason", result))
                raise
            else:
                result = "valid"
            finally:
                span.set_attribute("token.result", result)
                self._hub.counts.token_checks[result] += 1
        return claims

    @contextlib.asynccontextmanager
    async def _subscription(self, connection: Connection) -> AsyncIterator[AsyncIterator[bytes]]:
        channel = self._backplane.get_user_channel(connection.user_id)
        async with contextlib.AsyncExitStack() as stack:
            try:
                payloads = await stack.enter_async_context(self._backplane.subscribe(channel))
            except BackplaneUnavailableError as error:
                logger.error("subscription failed", cause=str(error))  # noqa: TRY400 - no defect
                raise_connection_error(
                    self._service,
                    "subscribe",
                    "redis",
                    "Notifications are unavailable",
                    connection.correlation_id,
                )
            yield payloads

    @contextlib.contextmanager
    def _opened(self, connection: Connection) -> Iterator[None]:
        """Count and log a connection's beginning, and its end whichever way it comes."""
        loop = asyncio.get_running_loop()
        connection.last_written_at = connection.last_pinged_at = loop.time()
        self._hub.counts.opened[connection.dialect] += 1
        logger.info(
            "connection opened", connection_id=connection.id, dialect=connection.dialect.value
        )
        try:
            yield
        except asyncio.CancelledError:
            # The server found the peer gone, or is going itself.
            left = connection.peer is not None and connection.peer.close_code is not None
            connection.close(CLIENT_CLOSED if left else CLIENT_GONE)
            raise
        except Exception:
            connection.close(DEFECT)
            raise
        finally:
            reason = connection.closing.result()
            duration_s = loop.time() - connection.opened_at
            self._hub.counts.closed[reason.code] += 1
            self._hub.duration.observe(duration_s)
            logger.info(
                "connection closed",
                connection_id=connection.id,
                close_code=reason.code,
                reason=reason.message,
                duration_s=round(duration_s, 3),
            )

    async def _run(
        self, socket: SocketProtocol, connection: Connection, payloads: AsyncIterator[bytes]
    ) -> CloseReason:
        """Run the connection's tasks until one of them, or anybody else, gives a reason to end."""
        if connection.peer is not None:
            connection.peer.violated.add_done_callback(
                lambda violated: connection.close(
                    VIOLATIONS.get(violated.result(), PROTOCOL_VIOLATION)
                )
            )
        if connection.dialect is Dialect.V1:
            self._offer(
                connection,
                frames.welcome(
                    connection_id=connection.id,
                    user_id=connection.user_id,
                    heartbeat_ms=round(self._limits.heartbeat_s * 1000),
                    token_expires_at=connection.expires_at,
                ),
            )
        listening = asyncio.create_task(
            self._listener.listen(connection, payloads), name=f"listen:{connection.id}"
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
                self._delivered(frame.publication)
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

    def _delivered(self, publication: Publication) -> None:
        counts = self._hub.counts
        counts.deliveries += 1
        counts.delivered_bytes += len(publication)
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

    async def _close(
        self,
        socket: SocketProtocol,
        upgrade: Upgrade,
        reason: CloseReason,
        detail: ErrorDetail | None,
    ) -> None:
        """Say why and wait for the peer's own close frame; cut off one that does not answer.

        The server ends this by cancelling it when the peer has closed. Without the wait, a peer
        that is still sending would get a reset in place of our close frame.
        """
        retry_after_ms = None
        if reason.reconnect is Reconnect.AFTER_DELAY:
            # Spread, so that a restart is not followed by everybody at once.
            retry_after_ms = round(self._limits.retry_after_s * random.uniform(500, 1500))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.close_timeout_s):
                await socket.accept(upgrade.subprotocol)
                if upgrade.dialect is Dialect.V1 and reason.error_code is not None:
                    # What is wrong on our side stays inside: the client gets the reason alone.
                    if detail is None or detail.error_code is not reason.error_code:
                        detail = self._detail(reason, upgrade)
                    await socket.send(frames.error(detail))
                await socket.close(
                    reason.code,
                    reason_text(reason, upgrade.correlation_id, retry_after_ms=retry_after_ms),
                )
                while True:
                    await socket.receive()
        if upgrade.peer is not None:
            upgrade.peer.abort()

    def _detail(self, reason: CloseReason, upgrade: Upgrade) -> ErrorDetail:
        return create_error_detail_with_context(
            reason.error_code or ErrorCode.UNKNOWN_ERROR,
            reason.message,
            self._service,
            "close",
            upgrade.correlation_id,
            capture_stack=False,
        )
