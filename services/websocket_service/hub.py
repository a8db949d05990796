"""All connections of this process: who is admitted, who is there, and how they all leave."""

import asyncio
import contextlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final
from uuid import UUID

from huleedu_service_libs.auth import JWTClaims
from huleedu_service_libs.error_handling import (
    raise_connection_error,
    raise_service_unavailable,
)
from services.websocket_service.close_reasons import DRAINING, SLOW_CONSUMER, CloseReason
from services.websocket_service.connection import (
    Connection,
    ConnectionId,
    PeerProtocol,
    UserId,
)
from services.websocket_service.connection_ids import new_connection_id
from services.websocket_service.frames import Dialect
from services.websocket_service.histogram import Histogram, HistogramSnapshot
from services.websocket_service.outbound import OutboundFrame
from services.websocket_service.outbox import Outbox, OutboxBudget

LATENCY_BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
DURATION_BOUNDS_S: Final = (1, 10, 60, 300, 900, 3600, 14_400, 43_200, 86_400)


@dataclass(frozen=True, slots=True)
class HubLimits:
    """How much this process admits and keeps waiting."""

    max_connections: int
    outbox_max_bytes: int
    outbox_max_frames: int
    outboxes_max_bytes: int
    """Of all connections together."""


@dataclass(frozen=True, slots=True)
class HubStatistics:
    """A snapshot; counts are since the start of the process."""

    connections: int
    users: int
    handshakes: int
    waiting_bytes: int
    draining: bool
    opened: MappingProxyType[Dialect, int]
    closed: MappingProxyType[int, int]
    refused: MappingProxyType[str, int]
    token_checks: MappingProxyType[str, int]
    token_renewals: MappingProxyType[str, int]
    deliveries: int
    delivered_bytes: int
    undeliverable: int
    resumes: MappingProxyType[str, int]
    resyncs: MappingProxyType[str, int]
    replayed: int
    latency: HistogramSnapshot
    duration: HistogramSnapshot


@dataclass(slots=True)
class _Counts:
    opened: Counter[Dialect] = field(default_factory=Counter)
    closed: Counter[int] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    token_checks: Counter[str] = field(default_factory=Counter)
    token_renewals: Counter[str] = field(default_factory=Counter)
    deliveries: int = 0
    delivered_bytes: int = 0
    undeliverable: int = 0
    resumes: Counter[str] = field(default_factory=Counter)
    resyncs: Counter[str] = field(default_factory=Counter)
    replayed: int = 0


class ConnectionHub:
    """Admits connections within the limits and counts what they do."""

    def __init__(self, limits: HubLimits, *, service: str) -> None:
        self._limits = limits
        self._service = service
        self._connections: dict[ConnectionId, Connection] = {}
        self._by_user: defaultdict[UserId, list[Connection]] = defaultdict(list)
        self._sessions = 0
        self._draining = False
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._budget = OutboxBudget(limits.outboxes_max_bytes, self._close_fullest)
        self.counts = _Counts()
        self.latency = Histogram(LATENCY_BOUNDS_S)
        self.duration = Histogram(DURATION_BOUNDS_S)

    @property
    def draining(self) -> bool:
        """True from the first word of a shutdown on."""
        return self._draining

    @property
    def full(self) -> bool:
        """True where the node admits no more for now."""
        return len(self._connections) >= self._limits.max_connections

    def connections(self) -> tuple[Connection, ...]:
        """Those that are there now."""
        return tuple(self._connections.values())

    def connections_of(self, user_id: UserId) -> tuple[Connection, ...]:
        """Those of one user."""
        return tuple(self._by_user.get(user_id, ()))

    def connection(self, connection_id: ConnectionId) -> Connection | None:
        """None where it is not here."""
        return self._connections.get(connection_id)

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """From a handshake's first step to its socket's last: `drain` waits for it."""
        self._sessions += 1
        self._quiet.clear()
        try:
            yield
        finally:
            self._sessions -= 1
            if not self._sessions:
                self._quiet.set()

    def check_node(self, correlation_id: UUID) -> None:
        """Raises HuleEduError: SERVICE_UNAVAILABLE in a drain, CONNECTION_ERROR when full."""
        if self._draining:
            raise_service_unavailable(
                self._service, "admit", self._service, DRAINING.message, correlation_id
            )
        if self.full:
            raise_connection_error(
                self._service, "admit", self._service, "Server is full", correlation_id
            )

    @contextlib.contextmanager
    def admit(
        self,
        *,
        claims: JWTClaims,
        dialect: Dialect,
        correlation_id: UUID,
        peer: PeerProtocol,
    ) -> Iterator[Connection]:
        """Hold a place for one connection; raises HuleEduError as `check_node` does."""
        self.check_node(correlation_id)
        user_id = UserId(claims.subject)
        loop = asyncio.get_running_loop()
        connection = Connection(
            id=new_connection_id(),
            user_id=user_id,
            dialect=dialect,
            correlation_id=correlation_id,
            claims=claims,
            peer=peer,
            outbox=Outbox(
                max_bytes=self._limits.outbox_max_bytes,
                max_frames=self._limits.outbox_max_frames,
                budget=self._budget,
            ),
            closing=loop.create_future(),
            opened_at=loop.time(),
            # Neither a heartbeat nor a ping is due before the upgrade is answered.
            last_written_at=math.inf,
            last_pinged_at=math.inf,
        )
        self._connections[connection.id] = connection
        self._by_user[user_id].append(connection)
        try:
            yield connection
        finally:
            connection.outbox.clear()
            del self._connections[connection.id]
            self._by_user[user_id].remove(connection)
            if not self._by_user[user_id]:
                del self._by_user[user_id]

    async def drain(self, reason: CloseReason = DRAINING, *, timeout_s: float) -> None:
        """Refuse newcomers, end every connection, and return once all sockets are released.

        A peer that does not answer its close frame within `timeout_s` is cut off.
        """
        self._draining = True
        for connection in self.connections():
            connection.close(reason)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._quiet.wait()
                return
        for connection in self.connections():
            connection.peer.abort()

    def _close_fullest(self) -> None:
        fullest = max(
            self._connections.values(), key=lambda connection: connection.outbox.used_bytes
        )
        fullest.close(SLOW_CONSUMER)
        fullest.outbox.clear()

    def count_delivered(self, batch: Iterable[OutboundFrame], now: float) -> None:
        """Frames were written at `now`, the event loop's time in seconds."""
        counts, observe = self.counts, self.latency.observe
        for frame in batch:
            if frame.payload_bytes is not None:
                counts.deliveries += 1
                counts.delivered_bytes += frame.payload_bytes
                if frame.published_at is not None:
                    observe(now - frame.published_at)

    def statistics(self) -> HubStatistics:
        """What is there now and what has been done so far."""
        counts = self.counts
        return HubStatistics(
            connections=len(self._connections),
            users=len(self._by_user),
            handshakes=self._sessions - len(self._connections),
            waiting_bytes=self._budget.used_bytes,
            draining=self._draining,
            opened=MappingProxyType(dict(counts.opened)),
            closed=MappingProxyType(dict(counts.closed)),
            refused=MappingProxyType(dict(counts.refused)),
            token_checks=MappingProxyType(dict(counts.token_checks)),
            token_renewals=MappingProxyType(dict(counts.token_renewals)),
            deliveries=counts.deliveries,
            delivered_bytes=counts.delivered_bytes,
            undeliverable=counts.undeliverable,
            resumes=MappingProxyType(dict(counts.resumes)),
            resyncs=MappingProxyType(dict(counts.resyncs)),
            replayed=counts.replayed,
            latency=self.latency.snapshot(),
            duration=self.duration.snapshot(),
        )
