"""What stands at the service's seams in its tests: small, in memory, and behaving.

The client is the far end of a socket and does what browsers and servers do together: nothing is
written before the upgrade is answered or after a close frame, close frames are answered, and a
client that does not read makes its socket unwritable.
"""

import asyncio
import contextlib
import json
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from secrets import randbits
from typing import Any
from uuid import UUID, uuid4

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from huleedu_service_libs.admission import Admission
from huleedu_service_libs.auth import JWTClaims
from huleedu_service_libs.error_handling import (
    raise_authentication_error,
    raise_configuration_error,
)
from huleedu_service_libs.history_pages import HistoryPage, KeptNotification, Loss, Unproven
from huleedu_service_libs.issued_ticket import IssuedTicket
from huleedu_service_libs.notification_ids import NotificationId, offset_of
from huleedu_service_libs.payload import Gap
from services.websocket_service.address_limits import AddressLimits
from services.websocket_service.admission import AdmissionPolicy
from services.websocket_service.credentials import Credentials
from services.websocket_service.exchange import ExchangeTerms, SessionLimits
from services.websocket_service.frames import SUBPROTOCOL_V1
from services.websocket_service.hub import ConnectionHub, HubLimits
from services.websocket_service.implementations.message_listener import MessageListener
from services.websocket_service.keeper import ConnectionKeeper, KeeperIntervals
from services.websocket_service.origins import AllowedOrigins
from services.websocket_service.outbound import OutboundFrame
from services.websocket_service.protocols import (
    BackplaneUnavailableError,
    MessageListenerProtocol,
    SocketListenerProtocol,
    SocketProtocol,
)
from services.websocket_service.publication import Publication
from services.websocket_service.rate_limit import TokenBucket
from services.websocket_service.session import SessionServer
from services.websocket_service.upgrade import Upgrade

# Only a test that fails ever waits so long.
GIVE_UP_AFTER_S = 20.0
MAX_MESSAGE_BYTES = 100

HUB_LIMITS = HubLimits(
    max_connections=100,
    outbox_max_bytes=100_000,
    outbox_max_frames=100,
    outboxes_max_bytes=10_000_000,
)
LIMITS = SessionLimits(
    frames_per_second=1,
    frame_burst=20,
    heartbeat_s=30,
    write_timeout_s=GIVE_UP_AFTER_S,
    max_age_s=GIVE_UP_AFTER_S,
    close_timeout_s=GIVE_UP_AFTER_S,
    retry_after_s=2,
)
INTERVALS = KeeperIntervals(
    ping_interval_s=30, idle_timeout_s=300, expiry_notice_s=60, grace_period_s=0, leeway_s=0
)
MAX_CONNECTIONS_PER_USER = 3
HANDSHAKE_BURST = 1_000


async def turns(count: int = 20) -> None:
    """Let everything that is ready run; nothing in these tests takes more turns than that."""
    for _ in range(count):
        await asyncio.sleep(0)


@dataclass(frozen=True, slots=True)
class CloseFrame:
    """What the client sees of the end."""

    code: int
    reason: str

    @property
    def fields(self) -> dict[str, Any]:
        """The reason, parsed."""
        fields: dict[str, Any] = json.loads(self.reason)
        return fields


def objects(text: str) -> list[dict[str, Any]]:
    """What a text frame of the v1 dialect holds: an object, or several in an array."""
    parsed: dict[str, Any] | list[dict[str, Any]] = json.loads(text)
    return parsed if isinstance(parsed, list) else [parsed]


class MemoryClient:
    """A client with its socket. Texts and the close frame arrive in order."""

    def __init__(self, *, answers_close: bool = True, reads: bool = True) -> None:
        self.session: asyncio.Task[None] | None = None
        self.accepted: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self.answers_close = answers_close
        self.reads = reads
        self.heard: asyncio.Queue[str | CloseFrame] = asyncio.Queue()
        self.socket = MemorySocket(self)
        self.close_frame: CloseFrame | None = None
        self._unpacked: deque[dict[str, Any]] = deque()

    @property
    def has_heard_all(self) -> bool:
        """Nothing has arrived that the test has not taken."""
        return self.heard.empty() and not self._unpacked

    async def connected(self) -> str | None:
        """The selected subprotocol, once the upgrade was answered."""
        async with asyncio.timeout(GIVE_UP_AFTER_S):
            return await asyncio.shield(self.accepted)

    async def text(self) -> str:
        """The next text frame."""
        assert not self._unpacked, self._unpacked
        async with asyncio.timeout(GIVE_UP_AFTER_S):
            heard = await self.heard.get()
        assert isinstance(heard, str), heard
        return heard

    async def frame(self) -> dict[str, Any]:
        """The next object of the v1 dialect, alone in its frame or with others."""
        if not self._unpacked:
            self._unpacked += objects(await self.text())
        return self._unpacked.popleft()

    async def ids(self, count: int) -> list[str]:
        """Those of the next frames, which must be notifications in either dialect."""
        frames = [await self.frame() for _ in range(count)]
        assert {frame.get("type", "notification") for frame in frames} <= {"notification"}, frames
        return [frame["id"] for frame in frames]

    async def closed(self) -> CloseFrame:
        """The close frame, which must be what comes next, and then the end of the session."""
        assert not self._unpacked, self._unpacked
        async with asyncio.timeout(GIVE_UP_AFTER_S):
            heard = await self.heard.get()
        assert isinstance(heard, CloseFrame), heard
        await self.ended()
        return heard

    async def ended(self) -> None:
        """Return once the session has released everything."""
        assert self.session is not None
        async with asyncio.timeout(GIVE_UP_AFTER_S):
            await asyncio.wait([self.session])

    def say(self, message: str | bytes) -> None:
        """Send a text or a binary message in one frame."""
        self.socket.come(message)

    def ping(self) -> None:
        """Send a control frame."""
        self.socket.come(None)

    def violate(self, code: int) -> None:
        """Send what is no valid frame; RFC 6455 closes with `code` for it."""
        self.socket.violated(code)

    def leave(self, close_code: int | None = 1001) -> None:
        """Close, or with None just vanish."""
        self.socket.left(close_code)

    def stop_reading(self) -> None:
        """Take nothing any more; the network takes one more write."""
        self.reads = False

    def read(self) -> None:
        """Take what waits on the network, and from now on everything."""
        self.reads = True
        self.socket.pass_on()

    def read_one(self) -> None:
        """Take what waits on the network, which is one write, and nothing more."""
        self.socket.pass_on()


class MemorySocket:
    """The server's end: a twin of the sockets that the service has.

    The network takes one write for a client that does not read. Then it is full until the client
    reads, and whoever goes on writing fills memory.
    """

    def __init__(self, client: MemoryClient) -> None:
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._listener: SocketListenerProtocol | None = None
        self._accepted = False
        self._closed = False
        self._is_deaf = False
        self._gone = asyncio.Event()
        self._close_code: int | None = None
        self.unread: list[str | CloseFrame] = []
        self.writes: list[tuple[OutboundFrame, ...]] = []
        self.writable = True
        self.last_heard_at = self._loop.time()
        self.pings = 0
        self.aborted = False

    async def accept(self, subprotocol: str | None) -> None:
        await asyncio.sleep(0)
        if not self._accepted and not self._gone.is_set():
            self._accepted = True
            self._client.accepted.set_result(subprotocol)

    def listen(self, listener: SocketListenerProtocol | None) -> None:
        self._listener = listener
        if listener is not None and self._gone.is_set():
            listener.on_gone(self._close_code)

    def write(self, frames: Sequence[OutboundFrame]) -> None:
        assert frames
        self._require_open()
        if not self._gone.is_set():
            self.writes.append(tuple(frames))
            self._transmit(*(frame.text.decode() for frame in frames))

    def ping(self) -> None:
        self._require_open()
        self.pings += 1

    def close(self, code: int, reason: str) -> None:
        self._require_open()
        self._closed = True
        if not self._gone.is_set():
            self._transmit(CloseFrame(code, reason))

    async def gone(self) -> None:
        await self._gone.wait()

    def abort(self) -> None:
        self.aborted = True
        self._loop.call_soon(self.left, None)

    def _require_open(self) -> None:
        if not self._accepted and not self._gone.is_set():
            raise RuntimeError("the upgrade has not been answered")
        if self._closed:
            raise RuntimeError("nothing may follow the close frame")

    def _transmit(self, *texts: str | CloseFrame) -> None:
        self.unread += texts
        if self._client.reads and self.writable:
            self._arrive()
        elif self.writable:
            self.writable = False
            if self._listener is not None:
                self._listener.on_paused()

    # What the client does

    def pass_on(self) -> None:
        """The client reads what waits; the server learns of it as of all others."""
        self._arrive()
        if not self.writable:
            self._loop.call_soon(self._resume)

    def _resume(self) -> None:
        if not self.writable and not self.unread:
            self.writable = True
            if self._listener is not None:
                self._listener.on_writable()

    def _arrive(self) -> None:
        unread, self.unread = self.unread, []
        for heard in unread:
            self._client.heard.put_nowait(heard)
            if isinstance(heard, CloseFrame):
                self._client.close_frame = heard
                if self._client.answers_close:
                    self._loop.call_soon(self.left, heard.code)

    def come(self, message: str | bytes | None) -> None:
        """A message has come, or with None a control frame."""
        assert self._accepted
        self._loop.call_soon(self._come, message)

    def _come(self, message: str | bytes | None) -> None:
        self.last_heard_at = self._loop.time()
        listener = self._listener
        if listener is None or self._is_deaf or self._gone.is_set() or not listener.on_frame():
            return
        if isinstance(message, str) and len(message.encode()) > MAX_MESSAGE_BYTES:
            self._violated(1009)
        elif message is not None:
            listener.on_message(message)

    def violated(self, code: int) -> None:
        """What has come is no valid frame."""
        assert self._accepted
        self._loop.call_soon(self._violated, code)

    def _violated(self, code: int) -> None:
        self._is_deaf = True
        if self._listener is not None and not self._gone.is_set():
            self._listener.on_violation(code)

    def left(self, close_code: int | None) -> None:
        """The peer has closed with a code, or vanished."""
        if not self._gone.is_set():
            self._close_code = close_code
            self._gone.set()
            if self._listener is not None:
                self._listener.on_gone(close_code)


class MemoryHistory:
    """A twin of one user's history in Redis."""

    def __init__(self) -> None:
        self.last: NotificationId | None = None
        self._origin: NotificationId | None = None
        self.entries: list[KeptNotification] = []
        self.expired: set[NotificationId] = set()

    def append(self, fields: dict[str, Any]) -> KeptNotification:
        """The entry for a published object, as the library's script would make it."""
        last = self.last
        offset = offset_of(last) + 1 if last else 1
        prev = last if offset > 1 else None
        id_ = NotificationId(f"{offset}-{randbits(62)}")
        payload = json.dumps({"id": id_, "prev": prev, **fields}, separators=(",", ":"))
        entry = KeptNotification(id_, payload.encode())
        if offset == 1:
            self._origin = last
        self.entries.append(entry)
        self.last = id_
        return entry

    @property
    def _before_oldest(self) -> NotificationId | None:
        link = Publication(self.entries[0].payload).link
        return (link.prev if link is not None else None) or self._origin

    def newest(self) -> NotificationId:
        self.last = self.last or NotificationId(f"0-{randbits(62)}")
        return self.last

    def after(self, cursor: NotificationId, page_entries: int) -> HistoryPage | Unproven:
        if cursor == self.last:
            return HistoryPage(cursor, cursor, complete=True, entries=())
        ids = [entry.id for entry in self.entries]
        if self.last is not None and cursor in ids:
            rest = self.entries[ids.index(cursor) + 1 :]
        elif self.last is not None and ids and cursor == self._before_oldest:
            rest = self.entries
        elif self.last is None:
            return Unproven(Loss.LOST, None)
        else:
            oldest = ids[0] if ids else self.last
            is_older = offset_of(cursor) < offset_of(oldest)
            return Unproven(Loss.TRIMMED if is_older else Loss.LOST, self.last)
        newest_of_key = {Publication(entry.payload).collapse_key: entry.id for entry in rest}

        def is_replayed(entry: KeptNotification) -> bool:
            key = Publication(entry.payload).collapse_key
            is_newest = key is None or newest_of_key[key] == entry.id
            return is_newest and entry.id not in self.expired

        page = rest[:page_entries]
        return HistoryPage(
            self.last,
            page[-1].id,
            complete=len(page) == len(rest),
            entries=tuple(filter(is_replayed, page)),
        )


class MemoryPayloads:
    """A subscription's payloads, up to the failure that ends them."""

    def __init__(self, queue: asyncio.Queue[bytes | Exception]) -> None:
        self._queue = queue
        self._failure: Exception | None = None

    async def next_batch(self) -> list[bytes]:
        batch: list[bytes] = []
        while self._failure is None and not (batch and self._queue.empty()):
            item = await self._queue.get()
            if isinstance(item, Exception):
                self._failure = item
            else:
                batch.append(item)
        if batch or self._failure is None:
            return batch
        raise self._failure


class MemoryBackplane:
    """A twin of Redis: who is subscribed when a payload is published gets it."""

    def __init__(self) -> None:
        self._channels: defaultdict[str, set[asyncio.Queue[bytes | Exception]]] = defaultdict(set)
        self.histories: defaultdict[str, MemoryHistory] = defaultdict(MemoryHistory)
        self.page_entries = 2
        self.reads = 0
        self.readable = True
        self.answers = asyncio.Event()
        self.answers.set()
        self.refused = asyncio.Event()
        self.acknowledges = asyncio.Event()
        self.acknowledges.set()
        self.available = True
        self.asked = asyncio.Event()

    @property
    def subscriptions(self) -> int:
        """How many there are now."""
        return sum(map(len, self._channels.values()))

    def get_user_channel(self, user_id: str) -> str:
        return f"ws:{user_id}"

    @contextlib.asynccontextmanager
    async def subscribe(self, channel: str) -> AsyncIterator[MemoryPayloads]:
        queue: asyncio.Queue[bytes | Exception] = asyncio.Queue()
        self.asked.set()
        if not self.available:
            raise BackplaneUnavailableError("nobody answers at 10.0.0.7:6379")
        self._channels[channel].add(queue)
        try:
            await asyncio.sleep(0)
            await self.acknowledges.wait()
            yield MemoryPayloads(queue)
        finally:
            self._channels[channel].discard(queue)
            await asyncio.sleep(0)

    def publish(self, user_id: str, payload: bytes) -> int:
        """The number of subscriptions that get it."""
        published = Publication(payload)
        published.received_at = asyncio.get_running_loop().time()
        return self._put(self._channels[self.get_user_channel(user_id)], published)

    async def newest(self, user_id: str) -> NotificationId:
        await self._read()
        return self.histories[user_id].newest()

    async def after(self, user_id: str, cursor: NotificationId) -> HistoryPage | Unproven:
        await self._read()
        return self.histories[user_id].after(cursor, self.page_entries)

    async def _read(self) -> None:
        self.reads += 1
        await asyncio.sleep(0)
        await self.answers.wait()
        if not self.readable:
            self.refused.set()
            raise BackplaneUnavailableError("no answer from 10.0.0.7:6379")

    def notify(
        self,
        user_id: str,
        *,
        delivered: bool = True,
        collapse_key: str | None = None,
        timestamp: str | None = None,
        **fields: Any,
    ) -> NotificationId:
        """Publish durably; without `delivered` the live copy is lost on its way."""
        head = {"collapse_key": collapse_key, "timestamp": timestamp}
        given = {name: value for name, value in head.items() if value is not None}
        entry = self.histories[user_id].append({**given, "event": "e", "data": {}, **fields})
        if delivered:
            self.publish(user_id, entry.payload)
        return entry.id

    def reconnect(self) -> None:
        """What a subscriber notices when Redis was lost and is heard again."""
        for queues in self._channels.values():
            self._put(queues, Gap())

    def publish_bytes(self, user_id: str, payload: bytes) -> int:
        """The same from a backplane that knows nothing of publications."""
        return self._put(self._channels[self.get_user_channel(user_id)], payload)

    def fail(self, failure: Exception) -> None:
        """End every subscription with `failure`."""
        for queues in self._channels.values():
            self._put(queues, failure)

    @staticmethod
    def _put(queues: set[asyncio.Queue[bytes | Exception]], item: bytes | Exception) -> int:
        for queue in queues:
            queue.put_nowait(item)
        return len(queues)


class FakeIssuer:
    """Issues tokens and verifies them: those that it did not issue are invalid."""

    def __init__(self) -> None:
        self._claims: dict[str, JWTClaims] = {}
        self.has_key = True
        self.answers = asyncio.Event()
        self.answers.set()
        self.failure: Exception | None = None

    def token(
        self, user_id: str, expires_in: timedelta = timedelta(hours=1), *, token_id: str = ""
    ) -> str:
        token = f"secret-{uuid4().hex}"
        now = datetime.now(UTC)
        self._claims[token] = JWTClaims(
            subject=user_id,
            expires_at=now + expires_in,
            issued_at=now,
            token_id=token_id or token,
            raw={},
        )
        return token

    def claims(self, token: str) -> JWTClaims:
        """What a token that it has issued says."""
        return self._claims[token]

    @property
    def problem(self) -> str | None:
        return None if self.has_key else "JWT_SECRET_KEY must be set"

    async def validate(self, token: str, correlation_id: UUID) -> JWTClaims:
        await self.answers.wait()
        if self.failure is not None:
            raise self.failure
        if not self.has_key:
            raise_configuration_error(
                "test", "validate", "JWT_SECRET_KEY", "JWT_SECRET_KEY must be set", correlation_id
            )
        if token not in self._claims:
            raise_authentication_error(
                "test", "validate", "Invalid token", correlation_id, reason="invalid_token"
            )
        return self._claims[token]


class MemoryLeases:
    """A twin of the leases of one installation."""

    def __init__(self, limit: int = MAX_CONNECTIONS_PER_USER) -> None:
        self.limit = limit
        self.held: defaultdict[str, set[str]] = defaultdict(set)
        self.lapsing: set[str] = set()
        self.available = True

    async def acquire(self, user_id: str, connection_id: str) -> Admission:
        await asyncio.sleep(0)
        if not self.available:
            raise BackplaneUnavailableError("nobody answers at 10.0.0.7:6379")
        held = self.held[user_id]
        if len(held) < self.limit:
            held.add(connection_id)
            return Admission.GRANTED
        return Admission.FULL_FOR_NOW if held & self.lapsing else Admission.FULL

    def release(self, user_id: str, connection_id: str) -> None:
        self.held[user_id].discard(connection_id)


class MemoryRevocations:
    """Knows at once what is revoked."""

    def __init__(self) -> None:
        self.token_ids: set[str | None] = set()
        self.is_current = True

    def is_known(self, claims: JWTClaims) -> bool:
        return claims.token_id in self.token_ids

    async def is_revoked(self, claims: JWTClaims) -> bool:
        if not self.is_current:
            raise BackplaneUnavailableError("the revocations are not loaded yet")
        return claims.token_id in self.token_ids


class MemoryTickets:
    """Tickets that are good once."""

    def __init__(self) -> None:
        self._claims: dict[str, JWTClaims] = {}

    async def issue(self, claims: JWTClaims) -> IssuedTicket:
        ticket = f"ticket-{uuid4().hex}"
        self._claims[ticket] = claims
        return IssuedTicket(ticket, expires_in_ms=30_000)

    async def redeem(self, ticket: str) -> JWTClaims | None:
        await asyncio.sleep(0)
        return self._claims.pop(ticket, None)


@dataclass
class Service:
    """A session server with everything that it needs, all of it at hand."""

    hub_limits: HubLimits = HUB_LIMITS
    limits: SessionLimits = LIMITS
    origins: AllowedOrigins = field(default_factory=lambda: AllowedOrigins([], allow_missing=True))
    handshake_burst: int = HANDSHAKE_BURST
    address_burst: int = HANDSHAKE_BURST
    issuer: FakeIssuer = field(default_factory=FakeIssuer)
    leases: MemoryLeases = field(default_factory=MemoryLeases)
    revocations: MemoryRevocations = field(default_factory=MemoryRevocations)
    tickets: MemoryTickets = field(default_factory=MemoryTickets)
    backplane: MemoryBackplane = field(default_factory=MemoryBackplane)
    listener: MessageListenerProtocol | None = None
    history_patience_s: float = GIVE_UP_AFTER_S
    intervals: KeeperIntervals = INTERVALS
    utc_now: Callable[[], datetime] = lambda: datetime.now(UTC)
    spans: InMemorySpanExporter = field(default_factory=InMemorySpanExporter)

    def __post_init__(self) -> None:
        self.hub = ConnectionHub(self.hub_limits, service="websocket_service")
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.spans))
        self.sessions = SessionServer(
            terms=ExchangeTerms(
                service="websocket_service",
                limits=self.limits,
                hub=self.hub,
                listener=self.listener
                or MessageListener(
                    self.hub, self.backplane, history_patience_s=self.history_patience_s
                ),
                validator=self.issuer,
                revocations=self.revocations,
                tracer=provider.get_tracer("test"),
            ),
            admission=AdmissionPolicy(
                service="websocket_service",
                hub=self.hub,
                handshakes=TokenBucket(rate=1, burst=self.handshake_burst, clock=lambda: 0),
                addresses=AddressLimits(rate=1, burst=self.address_burst, clock=lambda: 0),
                origins=self.origins,
            ),
            leases=self.leases,
            tickets=self.tickets,
            backplane=self.backplane,
            keeper=ConnectionKeeper(self.intervals, self.utc_now),
        )

    def begin(
        self,
        client: MemoryClient,
        *tokens: str,
        v1: bool = False,
        origin: str | None = None,
        correlation_id: UUID | None = None,
        cursor: str | None = None,
        ticket: str | None = None,
        address: str | None = None,
    ) -> MemoryClient:
        """Let the client ask for an upgrade."""
        client.session = self.serve(
            client.socket,
            Upgrade(
                correlation_id=correlation_id or uuid4(),
                credentials=Credentials(tokens, tickets=(ticket,) if ticket else ()),
                requested_subprotocols=[SUBPROTOCOL_V1] if v1 else [],
                origin=origin,
                cursor=cursor,
                address=address,
            ),
        )
        return client

    def serve(self, socket: SocketProtocol, upgrade: Upgrade) -> asyncio.Task[None]:
        """The session of any socket."""
        return asyncio.create_task(self.sessions.serve(socket, upgrade))

    async def connect(
        self, user_id: str = "teacher-1", *, v1: bool = False, client: MemoryClient | None = None
    ) -> MemoryClient:
        """A client of the user's, connected; with v1 its `welcome` has been read."""
        client = self.begin(client or MemoryClient(), self.issuer.token(user_id), v1=v1)
        await client.connected()
        if v1 and client.reads:
            assert (await client.frame())["type"] == "welcome"
        return client

    async def assert_live(self, user_id: str, *clients: MemoryClient) -> None:
        """What is published now is the next that each gets."""
        await turns()
        live = self.backplane.notify(user_id, event="live")
        for client in clients:
            assert await client.ids(1) == [live]

    async def leave(self, *clients: MemoryClient) -> None:
        """Let the last clients close."""
        for client in clients:
            client.leave()
        for client in clients:
            await client.ended()
        self.assert_nothing_left()

    def assert_nothing_left(self) -> None:
        """No connection, no subscription, and no task but the test's own."""
        statistics = self.hub.statistics()
        assert (statistics.connections, statistics.users, statistics.handshakes) == (0, 0, 0)
        assert self.hub.connections() == ()
        assert not any(self.leases.held.values())
        assert self.backplane.subscriptions == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}
