"""What goes on while a connection is open: listen, write, read."""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from opentelemetry.trace import Span, SpanKind, Tracer

from common_core.error_enums import ErrorCode
from huleedu_service_libs.error_handling import HuleEduError, create_error_detail_with_context
from huleedu_service_libs.logging_utils import create_service_logger
from huleedu_service_libs.observability import extract_trace_context
from services.websocket_service import frames
from services.websocket_service.close_reasons import (
    BINARY_FRAME,
    CLIENT_CLOSED,
    CLIENT_GONE,
    DEFECT,
    OTHER_USER,
    PROTOCOL_VIOLATION,
    RATE_LIMITED,
    SLOW_CONSUMER,
    TOKEN_REVOKED,
    TRY_LATER,
    VIOLATIONS,
    CloseReason,
    reason_for,
)
from services.websocket_service.connection import Connection
from services.websocket_service.continuity import Opening
from services.websocket_service.frames import Authenticate, Dialect, InvalidFrame, Ping
from services.websocket_service.hub import ConnectionHub
from services.websocket_service.outbound import OutboundFrame, joined
from services.websocket_service.protocols import (
    BackplaneUnavailableError,
    JWTValidatorProtocol,
    MessageListenerProtocol,
    PayloadsProtocol,
    RevocationsProtocol,
    SocketProtocol,
)
from services.websocket_service.rate_limit import TokenBucket

logger = create_service_logger(__name__)

# One write holds at most as much, or one frame.
MAX_WRITE_BYTES: Final = 32_768


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """What a client may send and how long it may take."""

    frames_per_second: int
    frame_burst: int
    heartbeat_s: float
    write_timeout_s: float
    max_age_s: float
    close_timeout_s: float
    retry_after_s: float


@dataclass(frozen=True, slots=True)
class ExchangeTerms:
    """What all exchanges of a process share."""

    service: str
    limits: SessionLimits
    hub: ConnectionHub
    listener: MessageListenerProtocol
    validator: JWTValidatorProtocol
    revocations: RevocationsProtocol
    tracer: Tracer


class Exchange:
    """Carries frames between one connection's outbox and its socket, and judges what comes.

    It is the socket's listener, and the consumer of the connection's outbox.
    """

    __slots__ = (
        "_bucket",
        "_connection",
        "_is_behind",
        "_loop",
        "_renewal",
        "_socket",
        "_stall",
        "_terms",
    )

    def __init__(
        self, terms: ExchangeTerms, socket: SocketProtocol, connection: Connection
    ) -> None:
        self._terms = terms
        self._loop = asyncio.get_running_loop()
        self._socket = socket
        self._connection = connection
        self._bucket = TokenBucket(
            rate=terms.limits.frames_per_second,
            burst=terms.limits.frame_burst,
            clock=self._loop.time,
        )
        self._is_behind = False
        self._stall: asyncio.TimerHandle | None = None
        self._renewal: asyncio.Task[None] | None = None
        connection.outbox.on_offer = self._flush
        socket.listen(self)

    async def run(self, payloads: PayloadsProtocol, opening: Opening) -> CloseReason:
        """Go on until anybody gives a reason to end; what was taken from Redis is written then."""
        connection = self._connection
        if connection.dialect is Dialect.V1:
            self._welcome(opening)
        listening = asyncio.create_task(
            self._terms.listener.listen(connection, payloads, opening),
            name=f"listen:{connection.id}",
        )
        listening.add_done_callback(self._listened)
        try:
            reason = await asyncio.shield(connection.closing)
            listening.cancel()
            if reason.code not in {CLIENT_CLOSED.code, CLIENT_GONE.code, SLOW_CONSUMER.code}:
                await self._write_out()
        finally:
            self._socket.listen(None)
            connection.outbox.on_offer = _nobody
            if self._stall is not None:
                self._stall.cancel()
            tasks = [listening] if self._renewal is None else [listening, self._renewal]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        return reason

    def _listened(self, listening: asyncio.Task[CloseReason]) -> None:
        if listening.cancelled():
            return
        error = listening.exception()
        if error is None:
            self._connection.close(listening.result())
        else:
            logger.error("listener failed", exc_info=error)
            self._connection.close(DEFECT)

    def _welcome(self, opening: Opening) -> None:
        connection = self._connection
        self._offer(
            frames.welcome(
                connection_id=connection.id,
                user_id=connection.user_id,
                heartbeat_ms=round(self._terms.limits.heartbeat_s * 1000),
                cursor=opening.cursor,
                resumed=opening.resumed,
                token_expires_at=connection.claims.expires_at,
            )
        )
        if opening.resync is not None:
            self._offer(frames.resync(opening.resync, opening.cursor))

    async def _write_out(self) -> None:
        """Let what was already taken from Redis reach a client that is reading."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._terms.limits.close_timeout_s):
                await self._connection.outbox.settled()

    # Out

    def _offer(self, text: str) -> None:
        frame = OutboundFrame(text.encode(), self._loop.time())
        if not self._connection.outbox.offer(frame):
            self._connection.close(SLOW_CONSUMER)

    def _flush(self) -> None:
        try:
            self._write_ready()
        except Exception:
            logger.exception("write failed")
            self._connection.close(DEFECT)
            self._give_up()

    def _give_up(self) -> None:
        """Let nobody wait for what can't be written any more."""
        self._connection.outbox.clear()
        self._connection.outbox.settle()

    def _write_ready(self) -> None:
        outbox, socket = self._connection.outbox, self._socket
        while socket.writable and len(outbox):
            self._write(outbox.take(MAX_WRITE_BYTES))
        if socket.writable:
            self._is_behind = False
            outbox.settle()
            return
        oldest = outbox.oldest_made_at
        if oldest is not None and self._loop.time() - oldest > self._terms.limits.max_age_s:
            self._connection.close(SLOW_CONSUMER)

    def _write(self, batch: Sequence[OutboundFrame]) -> None:
        connection = self._connection
        spans = [self._forwarding(frame) for frame in batch if frame.trace_context is not None]
        if self._is_behind and connection.dialect is Dialect.V1:
            self._socket.write((joined(batch),))
        else:
            self._socket.write(batch)
        for span in spans:
            span.end()
        now = connection.last_written_at = self._loop.time()
        self._terms.hub.count_delivered(batch, now)

    def _forwarding(self, frame: OutboundFrame) -> Span:
        """Continue the publisher's trace up to the socket."""
        return self._terms.tracer.start_span(
            "websocket.forward",
            context=extract_trace_context(frame.trace_context),
            kind=SpanKind.CONSUMER,
            attributes={
                "websocket.connection_id": self._connection.id,
                "messaging.message.body.size": frame.payload_bytes or 0,
            },
        )

    def on_paused(self) -> None:
        self._is_behind = True
        self._stall = self._loop.call_later(
            self._terms.limits.write_timeout_s, self._connection.close, SLOW_CONSUMER
        )

    def on_writable(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        self._flush()

    # In

    def on_frame(self) -> bool:
        if self._bucket.take():
            return True
        self._connection.close(RATE_LIMITED)
        return False

    def on_message(self, message: str | bytes) -> None:
        connection = self._connection
        if connection.closing.done():
            return
        if not isinstance(message, str):
            connection.close(BINARY_FRAME)
        elif connection.dialect is Dialect.V1:
            try:
                self._answer(message)
            except Exception:
                logger.exception("answer failed")
                connection.close(DEFECT)

    def on_violation(self, code: int) -> None:
        self._connection.close(VIOLATIONS.get(code, PROTOCOL_VIOLATION))

    def on_gone(self, close_code: int | None) -> None:
        self._connection.close(CLIENT_GONE if close_code is None else CLIENT_CLOSED)
        self._give_up()

    def _answer(self, text: str) -> None:
        # A client may ask several things at once: the answers leave together.
        self._connection.outbox.hold()
        self._loop.call_soon(self._connection.outbox.release)
        match frames.parse_client_frame(text):
            case Ping(nonce):
                self._offer(frames.pong(nonce))
            case Authenticate(token):
                self._authenticate(token)
            case InvalidFrame(field, message):
                self._refuse(ErrorCode.VALIDATION_ERROR, message, field=field)

    def _refuse(self, code: ErrorCode, message: str, **details: str) -> None:
        """Answer a client's frame with an error; the connection stays."""
        detail = create_error_detail_with_context(
            code,
            message,
            self._terms.service,
            "client_frame",
            self._connection.correlation_id,
            details=details,
            capture_stack=False,
        )
        self._offer(frames.error(detail))

    # Another token

    def _authenticate(self, token: str) -> None:
        if self._renewal is not None and not self._renewal.done():
            self._refuse(ErrorCode.RATE_LIMIT, "One 'authenticate' at a time: wait for the answer")
            return
        self._renewal = asyncio.create_task(self._renew(token))
        self._renewal.add_done_callback(self._renewed)

    def _renewed(self, renewal: asyncio.Task[None]) -> None:
        if not renewal.cancelled() and renewal.exception() is not None:
            logger.error("renewal failed", exc_info=renewal.exception())
            self._connection.close(DEFECT)

    async def _renew(self, token: str) -> None:
        """Let a token that is as good as the first one take its place; any other is the end."""
        connection, terms = self._connection, self._terms
        result = "unverifiable"
        try:
            claims = await terms.validator.validate(token, connection.correlation_id)
            if claims.subject != connection.user_id:
                result = "other_user"
                connection.close(OTHER_USER)
            elif await terms.revocations.is_revoked(claims):
                result = "token_revoked"
                connection.close(TOKEN_REVOKED)
            elif connection.closing.done():
                result = "too_late"
            else:
                result = "refreshed"
                connection.renew(claims)
                self._offer(frames.token_refreshed(claims.expires_at))
        except BackplaneUnavailableError:
            self._refuse(ErrorCode.CONNECTION_ERROR, TRY_LATER.message)
        except HuleEduError as error:
            reason = reason_for(error)
            if reason.code == TRY_LATER.code:
                # Ours to mend. The token that the connection has still counts.
                self._refuse(ErrorCode.CONNECTION_ERROR, TRY_LATER.message)
            else:
                result = reason.why or result
                connection.close(reason)
        finally:
            terms.hub.counts.token_renewals[result] += 1


def _nobody() -> None:
    """Takes the place of a consumer that has gone."""
