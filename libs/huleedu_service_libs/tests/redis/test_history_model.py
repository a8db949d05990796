"""Histories against a model: the scripts alone, a real Redis, and everything that happens to it.

Hypothesis publishes, trims, deletes, restarts Redis with and without its data, goes back to earlier
snapshots and lets readers read, in any order. What has to hold: a reader has seen every id exactly
once and in order, save what was collapsed or has expired, or was told that this can't be proven;
and it is told so only where something is really missing.

What Redis forgets by going back is nobody's knowledge any more, except where a reader stands there.

`HISTORY_MODEL_EXAMPLES=2000` in the environment makes a longer run.
"""

import asyncio
import copy
import json
import os
import shutil
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from redis.asyncio import Redis

from huleedu_service_libs.history_pages import HistoryPage, Unproven
from huleedu_service_libs.notification_ids import NotificationId, offset_of
from huleedu_service_libs.notification_settings import HistoryLimits
from huleedu_service_libs.notifications import Notification, NotificationReceipt
from huleedu_service_libs.redis_channels import UserKeys, user_channel
from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_server import (
    RedisServer,
    embedded_redis_server,
    installed_redis_server,
)

# Only a failure takes so long: Hypothesis looks for the shortest way to it.
pytestmark = pytest.mark.timeout(600)

T = TypeVar("T")
Lost = Literal["history", "last", "both"]

USERS = ("teacher-1", "teacher-{2}")
READERS = range(3)
PUBLISHERS = range(2)
MAX_SNAPSHOTS = 3
USER = st.sampled_from(USERS)
READER = st.sampled_from(READERS)
PUBLISHER = st.sampled_from(PUBLISHERS)


@dataclass(frozen=True)
class Wanted:
    """What is to be published."""

    collapse_key: str | None
    expires_in_s: float | None
    idempotency_key: str | None
    text_size: int = 0

    def notification(self, user: str) -> Notification:
        return Notification(
            user_id=user,
            event_type="e",
            data={"text": "x" * self.text_size},
            collapse_key=self.collapse_key,
            expires_in_s=self.expires_in_s,
            idempotency_key=self.idempotency_key,
        )


WANTED = st.builds(
    Wanted,
    collapse_key=st.sampled_from([None, None, "a", "b"]),
    # The rule ends when the first of these has passed.
    expires_in_s=st.sampled_from([None, None, None, 0.001, 1000]),
    idempotency_key=st.sampled_from([None, None, None, "job-1", "job-2"]),
    text_size=st.sampled_from([0, 300, 3000]),
)
PLAIN = Wanted(None, None, None)


@dataclass(frozen=True)
class Entry:
    id: NotificationId
    collapse_key: str | None
    is_expired: bool


@dataclass
class UserState:
    """What Redis knows of one user, according to the model."""

    size: int
    origin: NotificationId | None = None
    chain: list[Entry] = field(default_factory=list)
    kept: int = 0
    """So many of the chain, the newest, are in the history."""
    has_last: bool = False
    foreign: int = 0
    """So many entries of somebody else's are ahead of the chain."""
    has_leftovers: bool = False
    """The history holds what no chain leads to, until it is written to."""
    first_ids: dict[str, NotificationId] = field(default_factory=dict)

    @property
    def newest(self) -> NotificationId | None:
        return self.chain[-1].id if self.chain else self.origin

    def opened(self, newest: NotificationId) -> None:
        if self.newest is None:
            assert offset_of(newest) == 0
            self.origin = newest
            self.foreign, self.has_leftovers = 0, False
        assert newest == self.newest
        self.has_last = True

    def published(self, wanted: Wanted, receipt: NotificationReceipt) -> None:
        key = wanted.idempotency_key
        if key in self.first_ids:
            assert receipt == NotificationReceipt(self.first_ids[key], 0, duplicate=True)
            return
        assert receipt.id is not None
        assert not receipt.duplicate
        assert offset_of(receipt.id) == (offset_of(self.newest) if self.newest else 0) + 1
        if self.foreign or self.has_leftovers:
            self.kept = 0
        self.foreign, self.has_leftovers = 0, False
        self.has_last = True
        is_expired = wanted.expires_in_s is not None and wanted.expires_in_s < 1
        self.chain.append(Entry(receipt.id, wanted.collapse_key, is_expired))
        self.kept = min(self.kept + 1, self.size)
        if key is not None:
            self.first_ids[key] = receipt.id

    def lose(self, lost: Lost) -> None:
        if lost != "last":
            self.kept = self.foreign = 0
            self.has_leftovers = False
        if lost != "history":
            self.has_last = False
        self._forget_what_nothing_tells()

    def trimmed(self, length: int) -> None:
        self.kept = min(self.kept, max(0, length - self.foreign))
        self.foreign = min(self.foreign, length)
        self._forget_what_nothing_tells()

    def disturbed(self) -> None:
        self.foreign += 1
        self._forget_what_nothing_tells()

    def _forget_what_nothing_tells(self) -> None:
        if not self.has_last and (not self.kept or self.foreign):
            self.has_leftovers |= self.kept > 0
            self.origin, self.chain, self.kept = None, [], 0

    def after(self, cursor: NotificationId) -> list[Entry] | None:
        """All that followed; None where something of it is missing, or the cursor is unknown."""
        if cursor == self.origin:
            later = self.chain
        else:
            ids = [entry.id for entry in self.chain]
            if cursor not in ids:
                return None
            later = self.chain[ids.index(cursor) + 1 :]
        return later if len(later) <= self.kept else None


def visible(entries: Sequence[Entry]) -> list[NotificationId]:
    """What is replayed of them."""
    return [
        entry.id
        for index, entry in enumerate(entries)
        if not entry.is_expired
        and (
            entry.collapse_key is None
            or all(newer.collapse_key != entry.collapse_key for newer in entries[index + 1 :])
        )
    ]


@dataclass
class Reader:
    """Keeps a cursor, and what it has seen since it began or was last told to begin anew."""

    user: str
    began_at: NotificationId
    cursor: NotificationId
    seen: list[NotificationId] = field(default_factory=list)


class HistoryModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.server = RedisServer(installed_redis_server() or embedded_redis_server())
        self.run(self.server.__aenter__())
        self.admin = Redis(port=self.server.port, protocol=2)
        self.clients: list[RedisClient] = []
        self.users: dict[str, UserState] = {}
        self.readers: dict[int, Reader] = {}
        self.cursors: list[tuple[str, NotificationId]] = []
        self.snapshots: list[dict[str, UserState]] = []

    def run(self, work: Awaitable[T]) -> T:
        async def wait() -> T:
            return await work

        return self.runner.run(wait())

    @initialize(size=st.sampled_from([1, 4, 20, 100]))
    def start(self, size: int) -> None:
        limits = HistoryLimits(size=size)
        self.clients = [
            RedisClient(client_id=f"p{n}", redis_url=self.server.url, history_limits=limits)
            for n in PUBLISHERS
        ]
        for client in self.clients:
            self.run(client.start())
        self.users = {user: UserState(size) for user in USERS}

    def teardown(self) -> None:
        self.run(self._stop())
        self.runner.close()

    async def _stop(self) -> None:
        for client in self.clients:
            await client.stop()
        await self.admin.aclose()
        await self.server.__aexit__(None, None, None)

    # Publishers

    @rule(user=USER, publisher=PUBLISHER, wanted=WANTED)
    def publish(self, user: str, publisher: int, wanted: Wanted) -> None:
        self.run(self._publish(publisher, [(user, wanted)], in_batch=False))

    @rule(publisher=PUBLISHER, batch=st.lists(st.tuples(USER, WANTED), max_size=25))
    def publish_batch(self, publisher: int, batch: list[tuple[str, Wanted]]) -> None:
        self.run(self._publish(publisher, batch, in_batch=True))

    @rule(user=USER, publisher=PUBLISHER, count=st.sampled_from([3, 40, 150]))
    def publish_many(self, user: str, publisher: int, count: int) -> None:
        self.run(self._publish(publisher, [(user, PLAIN)] * count, in_batch=True))

    async def _publish(
        self, publisher: int, batch: Sequence[tuple[str, Wanted]], *, in_batch: bool
    ) -> None:
        client = self.clients[publisher]
        notifications = [wanted.notification(user) for user, wanted in batch]
        if in_batch:
            receipts = await client.publish_notifications(notifications)
        else:
            receipts = [await client.publish_notification(notifications[0])]
        for (user, wanted), receipt in zip(batch, receipts, strict=True):
            self.users[user].published(wanted, receipt)
            assert receipt.id is not None
            self.cursors.append((user, receipt.id))
        if any(wanted.expires_in_s == 0.001 for _, wanted in batch):
            now = await self.admin.time()
            while await self.admin.time() < (now[0], now[1] + 2000):
                pass

    # Readers

    @rule(user=USER, reader=READER)
    def open(self, user: str, reader: int) -> None:
        self.run(self._open(user, reader))

    async def _open(self, user: str, reader: int) -> None:
        newest = await self.clients[0].history.newest(user)
        self.users[user].opened(newest)
        self.cursors.append((user, newest))
        self.readers[reader] = Reader(user, newest, newest)

    @precondition(lambda self: self.readers)
    @rule(
        data=st.data(),
        max_entries=st.integers(1, 30),
        max_bytes=st.sampled_from([1, 1000, 10_000, 262_144]),
    )
    def read(self, data: st.DataObject, max_entries: int, max_bytes: int) -> None:
        number = data.draw(st.sampled_from(sorted(self.readers)))
        self.run(self._read(number, max_entries, max_bytes))

    async def _read(self, number: int, max_entries: int, max_bytes: int) -> None:
        reader = self.readers[number]
        page = await self._page(reader.user, reader.cursor, max_entries, max_bytes)
        if page is None:
            await self._open(reader.user, number)
            return
        reader.cursor = page.position
        reader.seen += [entry.id for entry in page.entries]
        assert len(reader.seen) == len(set(reader.seen)), "seen twice"
        if page.complete:
            self._audit(reader)

    def _audit(self, reader: Reader) -> None:
        """A reader that is through has seen all that was not hidden, in order."""
        state = self.users[reader.user]
        ids = [entry.id for entry in state.chain]
        begun = 0 if reader.began_at == state.origin else ids.index(reader.began_at) + 1
        covered = state.chain[begun:]
        assert [entry.id for entry in covered if entry.id in reader.seen] == reader.seen
        missing = [entry.id for entry in covered if entry.id not in reader.seen]
        assert not {*missing} & {*visible(covered)}, "missed without notice"

    @precondition(lambda self: self.cursors)
    @rule(data=st.data(), max_entries=st.integers(1, 30))
    def look_from_any_id_ever_given_out(self, data: st.DataObject, max_entries: int) -> None:
        user, cursor = data.draw(st.sampled_from(self.cursors))
        self.run(self._page(user, cursor, max_entries, 262_144))

    async def _page(
        self, user: str, cursor: NotificationId, max_entries: int, max_bytes: int
    ) -> HistoryPage | None:
        """Read, and compare with the model."""
        state = self.users[user]
        page = await self.clients[0].history.after(
            user, cursor, max_entries=max_entries, max_bytes=max_bytes
        )
        assert page.newest == state.newest
        later = state.after(cursor)
        if later is None:
            assert isinstance(page, Unproven)
            return None
        assert isinstance(page, HistoryPage), "everything was there"
        ids = [entry.id for entry in later]
        end = 0 if page.position == cursor else ids.index(page.position) + 1
        assert [entry.id for entry in page.entries] == [
            id_ for id_ in visible(later) if id_ in ids[:end]
        ]
        assert end <= max_entries
        if end < len(later):
            assert not page.complete
            assert end > 0
        elif not state.foreign:
            assert page.complete
        return page

    # What happens to Redis

    @rule(user=USER, lost=st.sampled_from(["history", "last", "both"]), expire=st.booleans())
    def keys_are_lost(self, user: str, lost: Lost, *, expire: bool) -> None:
        keys = UserKeys.of(user_channel(user))
        names = {"history": [keys.history], "last": [keys.last], "both": [keys.history, keys.last]}
        for name in names[lost]:
            self.run(self.admin.pexpire(name, 0) if expire else self.admin.delete(name))
        self.users[user].lose(lost)

    @rule(user=USER, key=st.sampled_from(["job-1", "job-2"]))
    def idempotency_key_expires(self, user: str, key: str) -> None:
        self.run(self.admin.pexpire(UserKeys.of(user_channel(user)).idempotency(key), 0))
        self.users[user].first_ids.pop(key, None)

    @rule(user=USER, length=st.integers(0, 5))
    def history_is_trimmed(self, user: str, length: int) -> None:
        history = UserKeys.of(user_channel(user)).history
        self.run(self.admin.xtrim(history, maxlen=length, approximate=False))
        self.users[user].trimmed(length)

    @rule(user=USER)
    def somebody_adds_an_entry(self, user: str) -> None:
        history = UserKeys.of(user_channel(user)).history
        # A stream that was not there would have no lifetime.
        if self.run(self.admin.exists(history)):
            self.run(self.admin.xadd(history, {"event": "e"}))
            self.users[user].disturbed()

    @rule()
    def scripts_are_flushed(self) -> None:
        self.run(self.admin.script_flush())

    @rule()
    def everything_is_deleted(self) -> None:
        self.run(self.admin.flushall())
        self._everything_is_gone()

    def _everything_is_gone(self) -> None:
        self.users = {user: UserState(state.size) for user, state in self.users.items()}

    @rule()
    def redis_restarts_with_its_data(self) -> None:
        self.run(self.admin.save())
        self.run(self._restart())

    @rule()
    def redis_restarts_empty(self) -> None:
        self._dump().unlink(missing_ok=True)
        self.run(self._restart())
        self._everything_is_gone()

    async def _restart(self) -> None:
        await self.server.kill()
        await self.server.launch()

    def _dump(self, snapshot: int | None = None) -> Path:
        name = "dump.rdb" if snapshot is None else f"{snapshot}.rdb"
        return self.server.socket_path.with_name(name)

    @precondition(lambda self: len(self.snapshots) < MAX_SNAPSHOTS)
    @rule()
    def snapshot_is_taken(self) -> None:
        self.run(self.admin.save())
        shutil.copy(self._dump(), self._dump(len(self.snapshots)))
        self.snapshots.append(copy.deepcopy(self.users))

    @precondition(lambda self: self.snapshots)
    @rule(data=st.data())
    def redis_goes_back_to_a_snapshot(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(range(len(self.snapshots))))
        shutil.copy(self._dump(number), self._dump())
        self.run(self._restart())
        self.users = copy.deepcopy(self.snapshots[number])

    # What always holds

    @invariant()
    def histories_are_what_the_model_says(self) -> None:
        for user, state in self.users.items():
            self.run(self._compare(user, state))

    async def _compare(self, user: str, state: UserState) -> None:
        keys = UserKeys.of(user_channel(user))
        kept = await self.clients[0].history.kept(user, max_entries=1000)
        texts = [json.loads(entry.payload) for entry in kept]
        if not state.has_leftovers:
            links = [(text["id"], text["prev"]) for text in texts]
            ids: list[str | None] = [None, *(entry.id for entry in state.chain)]
            expected = list(zip(ids[1:], ids[:-1], strict=True))
            assert links == expected[len(expected) - state.kept :]
        assert len(texts) <= state.size
        for name in (keys.history, keys.last):
            assert await self.admin.pttl(name) != -1, f"{name} lives for ever"


HistoryModel.TestCase.settings = settings(
    max_examples=int(os.environ.get("HISTORY_MODEL_EXAMPLES", "40")),
    stateful_step_count=50,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestHistoryModel = HistoryModel.TestCase
