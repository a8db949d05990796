"""The whole way of durable notifications against a model: real scripts, a real Redis.

Hypothesis publishes, connects and disconnects clients, and does to Redis what happens to it. What
has to hold for each client: of all that was published for its user since it first connected, it
has seen each exactly once and in order, or has been told to resynchronise.

What Redis forgets by going back to an earlier state is nobody's knowledge any more, except where a
client has seen some of it: that one must be told.

`DELIVERY_MODEL_EXAMPLES=500` in the environment makes a longer run.
"""

import asyncio
import os
import shutil
from collections.abc import Awaitable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from opentelemetry.trace import NoOpTracer
from redis.asyncio import Redis

from huleedu_service_libs.notification_settings import HistoryLimits
from huleedu_service_libs.notifications import Notification
from huleedu_service_libs.redis_channels import UserKeys, user_channel
from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_server import RedisServer
from services.websocket_service.address_limits import AddressLimits
from services.websocket_service.admission import AdmissionPolicy
from services.websocket_service.credentials import Credentials
from services.websocket_service.exchange import ExchangeTerms
from services.websocket_service.frames import SUBPROTOCOL_V1
from services.websocket_service.hub import ConnectionHub
from services.websocket_service.implementations.backplane import RedisBackplane
from services.websocket_service.implementations.message_listener import MessageListener
from services.websocket_service.keeper import ConnectionKeeper
from services.websocket_service.origins import AllowedOrigins
from services.websocket_service.publication import Publication
from services.websocket_service.rate_limit import TokenBucket
from services.websocket_service.session import SessionServer
from services.websocket_service.tests.fakes import (
    GIVE_UP_AFTER_S,
    HUB_LIMITS,
    INTERVALS,
    LIMITS,
    FakeIssuer,
    MemoryClient,
    MemoryLeases,
    MemoryRevocations,
    MemoryTickets,
    objects,
)
from services.websocket_service.upgrade import Upgrade

T = TypeVar("T")

USERS = ("teacher-1", "teacher-{2}", "teacher-3")
TABS = range(2)
HISTORY_SIZE = 20
# A client here reads only when the model looks: none is to be closed for that.
ROOMY = replace(HUB_LIMITS, outbox_max_frames=100_000, outbox_max_bytes=100_000_000)
USER = st.sampled_from(USERS)
TAB = st.sampled_from(TABS)


@dataclass(frozen=True)
class Published:
    """What a publisher knows of a notification: the order of these is the order of the truth."""

    id: str
    collapse_key: str | None


@dataclass
class Tab:
    """A browser tab: what it has been told, from the first connection on."""

    user: str
    client: MemoryClient | None = None
    cursor: str | None = None
    anchor: int | None = 0
    """How many of the user's notifications are behind it: seen, or covered by a resync. None after
    a resync without a cursor: all but those of the chain that begins next."""
    seen: set[str] = field(default_factory=set)


class DeliveryModel(RuleBasedStateMachine):
    """Sequential: each rule is over when what it did has settled in Redis."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.published: dict[str, list[Published]] = {user: [] for user in USERS}
        self.void: set[str] = set()
        self.snapshot: dict[str, int] | None = None
        self.keys = 0
        self.run(self._start())

    def run(self, work: Awaitable[T]) -> T:
        async def wait() -> T:
            return await work

        return self.runner.run(wait())

    async def _start(self) -> None:
        self.server = RedisServer(options={"appendonly": "no", "save": ""})
        await self.server.__aenter__()
        limits = HistoryLimits(size=HISTORY_SIZE)
        self.publisher = RedisClient(
            client_id="publisher", redis_url=self.server.url, history_limits=limits
        )
        await self.publisher.start()
        self.subscriber = RedisClient(
            client_id="service",
            redis_url=self.server.url,
            history_limits=limits,
            payload_type=Publication,
        )
        await self.subscriber.start()
        self.admin = Redis(port=self.server.port)
        self.hub = ConnectionHub(ROOMY, service="websocket_service")
        self.issuer = FakeIssuer()
        backplane = RedisBackplane(self.subscriber)
        self.sessions = SessionServer(
            terms=ExchangeTerms(
                service="websocket_service",
                limits=LIMITS,
                hub=self.hub,
                listener=MessageListener(self.hub, backplane),
                validator=self.issuer,
                revocations=MemoryRevocations(),
                tracer=NoOpTracer(),
            ),
            admission=AdmissionPolicy(
                service="websocket_service",
                hub=self.hub,
                handshakes=TokenBucket(rate=1, burst=1_000_000, clock=lambda: 0),
                addresses=AddressLimits(rate=1, burst=1, clock=lambda: 0),
                origins=AllowedOrigins([], allow_missing=True),
            ),
            leases=MemoryLeases(limit=ROOMY.max_connections),
            tickets=MemoryTickets(),
            backplane=backplane,
            keeper=ConnectionKeeper(INTERVALS, lambda: datetime.now(UTC)),
        )

    @initialize()
    def tabs_exist(self) -> None:
        self.tabs = {(user, tab): Tab(user) for user in USERS for tab in TABS}

    def teardown(self) -> None:
        try:
            if hasattr(self, "tabs"):
                self.everybody_settles()
        finally:
            self.run(self._stop())
            self.runner.close()

    async def _stop(self) -> None:
        for tab in getattr(self, "tabs", {}).values():
            await self._leave(tab)
        await self.admin.aclose()
        await self.subscriber.stop()
        await self.publisher.stop()
        await self.server.__aexit__(None, None, None)

    # Publishers

    @rule(user=USER, count=st.integers(1, 5), collapse=st.sampled_from([None, None, "a", "b"]))
    def publish(self, user: str, count: int, collapse: str | None) -> None:
        self.run(self._publish(user, count, collapse))

    @rule(user=USER)
    def publish_more_than_is_kept(self, user: str) -> None:
        self.run(self._publish(user, HISTORY_SIZE + 5, None))

    async def _publish(self, user: str, count: int, collapse: str | None = None) -> None:
        receipts = await self.publisher.publish_notifications(
            [
                Notification(user_id=user, event_type="test", data={}, collapse_key=collapse)
                for _ in range(count)
            ]
        )
        self.published[user] += [Published(str(receipt.id), collapse) for receipt in receipts]

    @rule(user=USER)
    def publish_twice_with_one_key(self, user: str) -> None:
        self.run(self._publish_twice(user))

    async def _publish_twice(self, user: str) -> None:
        self.keys += 1
        notification = Notification(
            user_id=user, event_type="test", data={}, idempotency_key=f"key-{self.keys}"
        )
        first = await self.publisher.publish_notification(notification)
        second = await self.publisher.publish_notification(notification)
        assert (second.id, second.duplicate) == (first.id, True)
        self.published[user].append(Published(str(first.id), None))

    # Clients

    @rule(user=USER, tab=TAB)
    def connect(self, user: str, tab: int) -> None:
        self.run(self._connect(self.tabs[user, tab]))

    async def _connect(self, tab: Tab) -> None:
        if tab.client is not None:
            return
        client = tab.client = MemoryClient()
        client.session = asyncio.create_task(
            self.sessions.serve(
                client.socket,
                Upgrade(
                    correlation_id=uuid4(),
                    credentials=Credentials((self.issuer.token(tab.user),)),
                    requested_subprotocols=[SUBPROTOCOL_V1],
                    origin=None,
                    cursor=tab.cursor,
                ),
            )
        )
        welcome = await client.frame()
        assert welcome["type"] == "welcome", welcome
        if welcome["resumed"] is None:
            assert tab.cursor is None
            tab.cursor = welcome["cursor"]
            tab.anchor = len(self.published[tab.user])
        elif welcome["resumed"] is False:
            resync = await client.frame()
            assert resync["type"] == "resync", resync
            self._resynchronised(tab, resync["cursor"])

    @rule(user=USER, tab=TAB, missed=st.integers(0, 3))
    def come_back(self, user: str, tab: int, missed: int) -> None:
        self.run(self._come_back(self.tabs[user, tab], missed))

    async def _come_back(self, tab: Tab, missed: int) -> None:
        await self._leave(tab)
        if missed:
            await self._publish(tab.user, missed)
        await self._connect(tab)

    @rule(user=USER, tab=TAB)
    def disconnect(self, user: str, tab: int) -> None:
        self.run(self._leave(self.tabs[user, tab]))

    async def _leave(self, tab: Tab) -> None:
        client, tab.client = tab.client, None
        if client is not None:
            client.leave(None)
            await client.ended()
            while not client.heard.empty():
                self._hear(tab, client.heard.get_nowait())

    @rule()
    def everybody_settles(self) -> None:
        self.run(self._settle())

    async def _settle(self) -> None:
        """A last notification for each user; whoever is connected gets it or is told."""
        for user in USERS:
            await self._publish(user, 1)
        for tab in self.tabs.values():
            if tab.client is not None:
                async with asyncio.timeout(GIVE_UP_AFTER_S):
                    while tab.anchor != len(self.published[tab.user]):
                        self._hear(tab, await tab.client.heard.get())

    # What a client makes of what it hears

    def _hear(self, tab: Tab, heard: object) -> None:
        assert isinstance(heard, str), heard
        for frame in objects(heard):
            if frame["type"] == "resync":
                self._resynchronised(tab, frame["cursor"])
            elif frame["type"] == "notification":
                self._notified(tab, frame["id"])

    def _resynchronised(self, tab: Tab, cursor: str | None) -> None:
        tab.cursor = cursor
        ids = [published.id for published in self.published[tab.user]]
        tab.anchor = None if cursor is None else ids.index(cursor) + 1

    def _notified(self, tab: Tab, id_: str) -> None:
        assert id_ not in tab.seen, "seen twice"
        # What lies in its queue may have come before Redis forgot it.
        assert id_ in self.void or tab.cursor not in self.void, "went on from what is forgotten"
        truth = self.published[tab.user]
        at = next(i for i, published in enumerate(truth) if published.id == id_)
        anchor = tab.anchor
        if anchor is None:
            anchor = max(i for i in range(at + 1) if truth[i].id.startswith("1-"))
        assert at >= anchor, "out of order"
        for index in range(anchor, at):
            skipped = truth[index]
            newer = {published.collapse_key for published in truth[index + 1 :]}
            collapsed = skipped.collapse_key is not None and skipped.collapse_key in newer
            assert collapsed or skipped.id in self.void, f"{skipped} lost without notice"
        tab.seen.add(id_)
        tab.cursor = id_
        tab.anchor = at + 1

    # What happens to Redis

    @rule()
    def subscription_connection_is_killed(self) -> None:
        self.run(self.admin.client_kill_filter(_type="pubsub"))

    @rule(user=USER, count=st.integers(1, 3))
    def publish_unheard(self, user: str, count: int) -> None:
        self.run(self._publish_unheard(user, count))

    async def _publish_unheard(self, user: str, count: int) -> None:
        await self.admin.client_kill_filter(_type="pubsub")
        await self._publish(user, count)

    @rule()
    def scripts_are_flushed(self) -> None:
        self.run(self.admin.script_flush())

    @rule()
    def everything_is_deleted(self) -> None:
        self.run(self.admin.flushall())
        self.snapshot = None

    @rule(user=USER)
    def history_expires(self, user: str) -> None:
        self.run(self.admin.delete(UserKeys.of(user_channel(user)).history))

    @rule(user=USER)
    def history_is_trimmed(self, user: str) -> None:
        history = UserKeys.of(user_channel(user)).history
        self.run(self.admin.xtrim(history, maxlen=2, approximate=False))

    @rule()
    def redis_restarts_with_its_data(self) -> None:
        self.run(self._restart(keep=True))

    @rule()
    def redis_restarts_empty(self) -> None:
        self.run(self._restart(keep=False))
        self.snapshot = None

    async def _restart(self, *, keep: bool) -> None:
        if keep:
            await self.admin.save()
        await self.server.kill()
        if not keep:
            self._dump.unlink(missing_ok=True)
        await self.server.launch()

    @property
    def _dump(self) -> Path:
        return self.server.socket_path.with_name("dump.rdb")

    @property
    def _kept_dump(self) -> Path:
        return self._dump.with_suffix(".kept")

    @rule()
    def a_snapshot_is_taken(self) -> None:
        self.run(self.admin.save())
        shutil.copy(self._dump, self._kept_dump)
        self.snapshot = {user: len(self.published[user]) for user in USERS}

    @precondition(lambda self: self.snapshot is not None)
    @rule()
    def redis_goes_back_to_the_snapshot(self) -> None:
        self.run(self._go_back())

    async def _go_back(self) -> None:
        assert self.snapshot is not None
        await self.server.kill()
        shutil.copy(self._kept_dump, self._dump)
        await self.server.launch()
        for user, length in self.snapshot.items():
            self.void.update(published.id for published in self.published[user][length:])

    @invariant()
    def sessions_are_alive(self) -> None:
        """No fault of Redis ends a connection here: each is over in time."""
        for tab in getattr(self, "tabs", {}).values():
            if tab.client is not None:
                assert tab.client.close_frame is None, tab.client.close_frame


DeliveryModel.TestCase.settings = settings(
    max_examples=int(os.environ.get("DELIVERY_MODEL_EXAMPLES", "15")),
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestDeliveryModel = DeliveryModel.TestCase
