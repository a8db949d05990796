"""The life of a WebSocket, from the upgrade to the one reason for its end.

Upgrade, origin, credential, admission, subscription (acknowledged by Redis), the place in the
user's history, then the answer to the upgrade: a client that sees the connection open misses
nothing that is published from then on. What was acquired is released in reverse order before the
close frame is written, so that a peer which takes its time holds nothing but its own socket.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Iterator
from uuid import UUID

import structlog
from opentelemetry.trace import Span, Tracer

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
from huleedu_service_libs.observability import trace_operation
from services.websocket_service import frames
from services.websocket_service.close_reasons import (
    CLIENT_CLOSED,
    CLIENT_GONE,
    DEFECT,
    TOKEN_EXPIRED,
    TRY_LATER,
    CloseReason,
    Reconnect,
    reason_for,
    reason_text,
)
from services.websocket_service.connection import Connection, UserId
from services.websocket_service.continuity import Opening
from services.websocket_service.exchange import Exchange, SessionLimits
from services.websocket_service.frames import Dialect
from services.websocket_service.hub import ConnectionHub
from services.websocket_service.origins import AllowedOrigins
from services.websocket_service.protocols import (
    BackplaneProtocol,
    BackplaneUnavailableError,
    JWTValidatorProtocol,
    SocketProtocol,
)
from services.websocket_service.resumption import open_history
from services.websocket_service.upgrade import Upgrade

logger = create_service_logger(__name__)


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
        exchange: Exchange,
        tracer: Tracer,
    ) -> None:
        self._service = service
        self._limits = limits
        self._origins = origins
        self._validator = validator
        self._hub = hub
        self._backplane = backplane
        self._exchange = exchange
        self._tracer = tracer

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
        # Theirs to mend, or a drain: a line. Ours: somebody's attention.
        write = logger.warning if reason.code == TRY_LATER.code else logger.info
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
                opening = await self._history(connection, upgrade)
                await socket.accept(upgrade.subprotocol)
                with self._opened(connection):
                    return await self._exchange.run(socket, connection, payloads, opening)

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
                if not tokens:
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
            with self._backplane_needed("subscribe", connection.correlation_id):
                payloads = await stack.enter_async_context(self._backplane.subscribe(channel))
            yield payloads

    async def _history(self, connection: Connection, upgrade: Upgrade) -> Opening:
        # Once subscribed: what is published from now on waits there.
        cursor = upgrade.cursor if connection.dialect is Dialect.V1 else None
        with self._backplane_needed("read_history", connection.correlation_id):
            opening = await open_history(self._backplane, connection.user_id, cursor)
        if opening.resumed is not None:
            self._hub.counts.resumes["resumed" if opening.resync is None else opening.resync] += 1
        return opening

    @contextlib.contextmanager
    def _backplane_needed(self, operation: str, correlation_id: UUID) -> Iterator[None]:
        try:
            yield
        except BackplaneUnavailableError as error:
            logger.error("backplane unavailable", operation=operation, cause=str(error))  # noqa: TRY400 - no defect
            raise_connection_error(
                self._service, operation, "redis", "Notifications are unavailable", correlation_id
            )

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
                if upgrade.peer is not None and upgrade.peer.violated.done():
                    # After an invalid frame its close frame can't be recognised, its hang-up can.
                    upgrade.peer.finish()
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
            details={"reason": "token_expired"} if reason is TOKEN_EXPIRED else None,
            capture_stack=False,
        )
