"""Whatever happens, an application sees each notification once and in order, or is told.

With the twin of Redis, turn by turn of the event loop, tiny pages and a tab that may stop reading;
`test_delivery_model` holds the same against a real Redis.
"""

import asyncio
import copy
from collections.abc import Coroutine
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from huleedu_service_libs.notification_ids import NotificationId, is_origin
from services.websocket_service.tests.fakes import (
    MemoryBackplane,
    MemoryClient,
    MemoryHistory,
    Service,
    objects,
    turns,
)


class Application:
    """What a page makes of its frames: a state, and what it was told of since it fetched that."""

    def __init__(self, cursor: NotificationId | None) -> None:
        self.cursor = cursor
        self.start = cursor
        self.shown: list[NotificationId] = []
        self.resyncs = 0

    def handle(self, frame: dict[str, Any]) -> None:
        self.resyncs += frame["type"] == "resync"
        if frame["type"] == "resync" or (frame["type"] == "welcome" and frame["resumed"] is None):
            self.cursor = self.start = frame["cursor"]
            self.shown = []
        elif "id" in frame:
            self.cursor = frame["id"]
            self.shown.append(frame["id"])


class Machine(RuleBasedStateMachine):
    """One tab of a user, which comes and goes, and a Redis that is not to be relied on."""

    @initialize(page_entries=st.integers(1, 3), published=st.integers(1, 4))
    def open(self, page_entries: int, published: int) -> None:
        self.loop = asyncio.new_event_loop()
        self.backplane = MemoryBackplane()
        self.backplane.page_entries = page_entries
        self.service = Service(backplane=self.backplane)
        self.client: MemoryClient | None = None
        self.heard = True
        self.whole = True
        # The present chain, from its beginning, with the collapse key of each.
        self.timeline: dict[NotificationId, str | None] = {}
        self.expired: set[NotificationId] = set()
        self.trimmed = False
        # Who has heard a master that was replaced, and of how many losses it knew by then.
        self.owed: tuple[MemoryClient, int] | None = None
        for _ in range(published):
            self.run(self.notify(None))
        self.application = Application(self.history.last)
        self.save()
        self.come_back()

    def run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self.loop.run_until_complete(coroutine)

    @property
    def history(self) -> MemoryHistory:
        return self.backplane.histories["a"]

    async def notify(self, key: str | None) -> None:
        id_ = self.backplane.notify("a", delivered=self.heard, collapse_key=key)
        self.timeline[id_] = key

    # Notifications

    @rule(keys=st.lists(st.sampled_from([None, None, "k"]), min_size=1, max_size=4))
    def publish(self, keys: list[str | None]) -> None:
        for key in keys:
            self.run(self.notify(key))

    @rule()
    def publish_raw(self) -> None:
        async def publish() -> None:
            if self.heard:
                self.backplane.publish("a", b'{"event":"raw"}')

        self.run(publish())

    @rule()
    def expire_newest(self) -> None:
        self.expired.update(entry.id for entry in self.history.entries[-1:])
        self.history.expired |= self.expired

    # The tab

    @precondition(lambda self: self.client is None)
    @rule()
    def come_back(self) -> None:
        async def connect() -> None:
            token = self.service.issuer.token("a")
            self.client = self.service.begin(
                MemoryClient(), token, v1=True, cursor=self.application.cursor
            )

        self.run(connect())

    @precondition(lambda self: self.client is not None)
    @rule()
    def leave(self) -> None:
        async def leave(client: MemoryClient) -> None:
            client.leave()
            await client.ended()

        assert self.client is not None
        self.run(leave(self.client))
        self.client = None

    @precondition(lambda self: self.client is not None)
    @rule(reads=st.booleans())
    def read(self, reads: bool) -> None:
        assert self.client is not None
        if reads:
            self.client.read()
        else:
            self.client.stop_reading()

    @precondition(lambda self: self.client is not None and not self.client.reads)
    @rule()
    def read_one(self) -> None:
        assert self.client is not None
        self.client.read_one()

    @rule(count=st.sampled_from([1, 3, 10, 60]))
    def time_passes(self, count: int) -> None:
        self.run(turns(count))
        while self.client is not None and not self.client.heard.empty():
            text = self.client.heard.get_nowait()
            assert isinstance(text, str), text
            for frame in objects(text):
                self.application.handle(frame)

    # Redis

    @rule()
    def redis_is_lost(self) -> None:
        self.heard = False

    @rule()
    def redis_is_heard_again(self) -> None:
        self.heard = True
        self.backplane.reconnect()

    @rule(kept=st.integers(0, 3))
    def trim(self, kept: int) -> None:
        del self.history.entries[: -kept or None]
        self.whole = False
        # Of what is older than what is kept nobody can tell of which chain it is.
        self.trimmed = True

    @rule()
    def flush(self) -> None:
        self.backplane.histories.clear()
        self.timeline.clear()
        self.whole = False

    @rule()
    def save(self) -> None:
        self.snapshot = copy.deepcopy(self.history), dict(self.timeline)

    @rule()
    def restart_from_snapshot(self) -> None:
        history, timeline = self.snapshot
        self.backplane.histories["a"] = copy.deepcopy(history)
        self.history.expired |= self.expired
        self.timeline = dict(timeline)
        self.whole = False
        self.redis_is_heard_again()

    @rule(count=st.integers(1, 3))
    def replaced_master_is_heard(self, count: int) -> None:
        async def publish() -> None:
            replaced = copy.deepcopy(self.snapshot[0])
            for _ in range(count):
                payload = replaced.append({"event": "e", "data": {}}).payload
                if self.heard and self.backplane.publish("a", payload) and self.client:
                    self.owed = self.client, self.application.resyncs

        self.whole = False
        self.run(publish())

    # What holds

    @invariant()
    def once(self) -> None:
        if hasattr(self, "application"):
            assert len(set(self.application.shown)) == len(self.application.shown)
            assert self.whole <= (self.application.resyncs == 0)

    def teardown(self) -> None:
        """Sooner or later the application has seen all, in order, save for what is outdated."""
        if not hasattr(self, "application"):
            return
        self.redis_is_heard_again()
        if self.client is None:
            self.come_back()
        self.publish([None])
        self.read(reads=True)
        self.time_passes(300)
        if self.owed is not None and self.owed[0] is self.client and not self.trimmed:
            assert self.application.resyncs > self.owed[1]
        shown, start = self.application.shown, self.application.start
        ids = list(self.timeline)
        assert start is None or start in ids or is_origin(start)
        since = ids[ids.index(start) + 1 :] if start in self.timeline else ids
        assert [id_ for id_ in since if id_ in shown] == shown
        for id_ in set(since) - set(shown):
            key = self.timeline[id_]
            later = ids[ids.index(id_) + 1 :]
            replaced = key is not None and key in map(self.timeline.get, later)
            assert replaced or id_ in self.expired
        self.leave()
        self.run(turns())
        self.loop.close()


TestNeverInSilence = Machine.TestCase
TestNeverInSilence.settings = settings(TestNeverInSilence.settings, stateful_step_count=40)
