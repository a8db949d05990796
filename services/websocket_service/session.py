"""The life of a WebSocket, from the upgrade to the one reason for its end.

Upgrade, admission by node, address and origin, credential, one of the user's places, subscription
(acknowledged by Redis), the place in the user's history, then the answer to the upgrade: a client
that sees the connection open misses nothing that is published from then on. What was acquired is
released in reverse order before the close frame is written, so that a peer which takes its time
holds nothing but its own socket.
"""

import asyncio
import contextlib
import random
from collections.abc import Iterator
from typing import NoReturn

import structlog
from opentelemetry.trace import Span

from common_core.error_enums import ErrorCode
from common_core.models.error_models import ErrorDetail
from huleedu_service_libs.admission import Admission
from huleedu_service_libs.auth import JWTClaims
from huleedu_service_libs.error_handling import (
    HuleEduError,
    create_error_detail_with_context,
    raise_authentication_error,
    raise_connection_error,
    raise_quota_exceeded,
)
from huleedu_service_libs.logging_utils import create_service_logger
from huleedu_service_libs.observability import trace_operation, use_trace_context
from services.websocket_service import frames
from services.websocket_service.admission import FLOODS, AdmissionPolicy
from services.websocket_service.close_reasons import (
    CLIENT_CLOSED,
    CLIENT_GONE,
    DEFECT,
    DRAINING,
    TOKEN_REVOKED,
    TRY_LATER,
    CloseReason,
    Reconnect,
    reason_for,
    reason_text,
)
from services.websocket_service.connection import Connection
from services.websocket_service.continuity import Opening
from services.websocket_service.exchange import Exchange, ExchangeTerms
from services.websocket_service.frames import Dialect
from services.websocket_service.keeper import ConnectionKeeper
from services.websocket_service.outbound import OutboundFrame
from services.websocket_service.protocols import (
    BackplaneProtocol,
    BackplaneUnavailableError,
    LeasesProtocol,
    SocketProtocol,
    TicketsProtocol,
)
from services.websocket_service.resumption import open_history
from services.websocket_service.upgrade import Upgrade

logger = create_service_logger(__name__)

BACKPLANE_AWAY = TRY_LATER.with_message("Notifications are unavailable")


class SessionServer:
    """Serves one upgrade after the other; holds no state of its own."""

    def __init__(
        self,
        *,
        terms: ExchangeTerms,
        admission: AdmissionPolicy,
        leases: LeasesProtocol,
        tickets: TicketsProtocol,
        backplane: BackplaneProtocol,
        keeper: ConnectionKeeper,
    ) -> None:
        self._terms = terms
        self._service = terms.service
        self._limits = terms.limits
        self._hub = terms.hub
        self._tracer = terms.tracer
        self._validator = terms.validator
        self._revocations = terms.revocations
        self._admission = admission
        self._leases = leases
        self._tickets = tickets
        self._backplane = backplane
        self._keeper = keeper

    async def serve(self, socket: SocketProtocol, upgrade: Upgrade) -> None:
        """Attend to a socket until it is closed, or lost."""
        with (
            self._hub.session(),
            structlog.contextvars.bound_contextvars(correlation_id=str(upgrade.correlation_id)),
            use_trace_context(upgrade.trace_carrier),
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
            except BackplaneUnavailableError as error:
                logger.error("backplane unavailable", cause=str(error))  # noqa: TRY400 - no defect
                reason, detail = BACKPLANE_AWAY, self._detail(BACKPLANE_AWAY, upgrade)
                self._refused(reason, detail)
            except Exception:
                reason, detail = DEFECT, None
                logger.exception("session failed")
            span.set_attribute("websocket.close_code", reason.code)
            if reason is not CLIENT_CLOSED and reason is not CLIENT_GONE:
                await self._close(socket, upgrade, reason, detail)

    def _refused(self, reason: CloseReason, detail: ErrorDetail) -> None:
        why = detail.details.get("reason", detail.error_code.value.lower())
        self._hub.counts.refused[str(why)] += 1
        # Theirs to mend, or a drain: a line. Ours: somebody's attention. A flood: a number.
        write = logger.warning if reason.code == TRY_LATER.code else logger.info
        if why in FLOODS:
            write = logger.debug
        write("handshake refused", close_code=reason.code, reason=why, message=detail.message)

    async def _live(self, socket: SocketProtocol, upgrade: Upgrade, span: Span) -> CloseReason:
        """Everything between the upgrade and the close frame; returns with all of it released.

        Raises HuleEduError for a refusal.
        """
        self._admission.check(upgrade)
        claims = await self._authenticate(upgrade)
        with self._hub.admit(
            claims=claims,
            dialect=upgrade.dialect,
            correlation_id=upgrade.correlation_id,
            peer=socket,
        ) as connection:
            span.set_attribute("websocket.connection_id", connection.id)
            try:
                await self._take_place(connection)
                channel = self._backplane.get_user_channel(connection.user_id)
                async with self._backplane.subscribe(channel) as payloads:
                    # Once subscribed: what is published from now on waits there.
                    opening = await self._history(connection, upgrade)
                    # Late, so that little can have been revoked since; what is, ends it.
                    if await self._revocations.is_revoked(connection.claims):
                        self._reject_revoked(upgrade)
                    exchange = Exchange(self._terms, socket, connection)
                    if connection.closing.done():
                        return connection.closing.result()
                    await socket.accept(upgrade.subprotocol)
                    with self._opened(connection), self._keeper.attending(connection):
                        return await exchange.run(payloads, opening)
            finally:
                self._leases.release(connection.user_id, connection.id)

    async def _take_place(self, connection: Connection) -> None:
        admission = await self._leases.acquire(connection.user_id, connection.id)
        if admission is Admission.FULL_FOR_NOW:
            raise_connection_error(
                self._service,
                "admit",
                "connections_per_user",
                "Connections are about to lapse",
                connection.correlation_id,
                reason="lapsing_connections",
            )
        if admission is Admission.FULL:
            limit = self._leases.limit
            raise_quota_exceeded(
                self._service,
                "admit",
                "connections_per_user",
                limit,
                f"More than {limit} connections",
                connection.correlation_id,
            )

    async def _authenticate(self, upgrade: Upgrade) -> JWTClaims:
        result = "unverifiable"
        with trace_operation(self._tracer, "websocket.validate_token") as span:
            try:
                claims = await self._claims(upgrade)
                if self._revocations.is_known(claims):
                    # Nothing of the user's is spent on it.
                    self._reject_revoked(upgrade)
            except HuleEduError as error:
                result = str(error.error_detail.details.get("reason", result))
                raise
            else:
                result = "valid"
            finally:
                span.set_attribute("token.result", result)
                self._hub.counts.token_checks[result] += 1
        return claims

    async def _claims(self, upgrade: Upgrade) -> JWTClaims:
        tokens, tickets = upgrade.credentials.tokens, upgrade.credentials.tickets
        if upgrade.credentials.conflicting:
            self._reject(upgrade, "Two different credentials", "conflicting_credentials")
        if tokens:
            return await self._validator.validate(tokens[0], upgrade.correlation_id)
        if not tickets:
            self._reject(upgrade, "Missing token", "missing_token")
        claims = await self._tickets.redeem(tickets[0])
        if claims is None:
            self._reject(upgrade, "Ticket is unknown, used or too old", "invalid_ticket")
        return claims

    def _reject_revoked(self, upgrade: Upgrade) -> NoReturn:
        self._reject(upgrade, TOKEN_REVOKED.message, TOKEN_REVOKED.why)

    def _reject(self, upgrade: Upgrade, message: str, reason: str | None) -> NoReturn:
        raise_authentication_error(
            self._service, "authenticate", message, upgrade.correlation_id, reason=reason
        )

    async def _history(self, connection: Connection, upgrade: Upgrade) -> Opening:
        cursor = upgrade.cursor if connection.dialect is Dialect.V1 else None
        opening = await open_history(self._backplane, connection.user_id, cursor)
        if opening.resumed is not None:
            self._hub.counts.resumes["resumed" if opening.resync is None else opening.resync] += 1
        return opening

    @contextlib.contextmanager
    def _opened(self, connection: Connection) -> Iterator[None]:
        """Count and log a connection's beginning, and its end whichever way it comes."""
        loop = asyncio.get_running_loop()
        connection.last_written_at = connection.last_pinged_at = loop.time()
        self._hub.counts.opened[connection.dialect] += 1
        logger.debug("connection opened", connection_id=connection.id)
        try:
            yield
        except asyncio.CancelledError:
            # Only a server that is going itself does this.
            connection.close(CLIENT_GONE)
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
                dialect=connection.dialect.value,
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

        Without the wait, a peer that is still sending would get a reset in place of our close
        frame.
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
                    texts = [frames.error(detail)]
                    if reason.code == DRAINING.code and retry_after_ms is not None:
                        texts.insert(0, frames.going_away(retry_after_ms))
                    now = asyncio.get_running_loop().time()
                    socket.write([OutboundFrame(text.encode(), now) for text in texts])
                socket.close(
                    reason.code,
                    reason_text(reason, upgrade.correlation_id, retry_after_ms=retry_after_ms),
                )
                await socket.gone()
                return
        socket.abort()

    def _detail(self, reason: CloseReason, upgrade: Upgrade) -> ErrorDetail:
        return create_error_detail_with_context(
            reason.error_code or ErrorCode.UNKNOWN_ERROR,
            reason.message,
            self._service,
            "close",
            upgrade.correlation_id,
            details={"reason": reason.why} if reason.why else None,
            capture_stack=False,
        )
