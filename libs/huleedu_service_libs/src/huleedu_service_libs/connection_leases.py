"""Connections of each user, counted over all processes and hosts by leases in Redis.

What always holds:

1. Who is over the limit is refused, however many ask at once, wherever: Redis counts and adds in
   one step. Save where it has lost leases: those come back with the next renewal.
2. Only what was granted to a caller who is still there is renewed, and nothing any more from the
   moment of its release. What a process leaves behind lapses within one duration.
3. A release takes effect before each later `acquire` for the user in this process, and no call
   that was sent before it, however late, brings the lease back.
4. Redis being away delays nobody who releases. It is told when it is back.
"""

import asyncio
import itertools
import logging
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from redis import exceptions

from huleedu_service_libs.admission import Admission
from huleedu_service_libs.lease_releases import Release, UnconfirmedReleases
from huleedu_service_libs.lease_scripts import CLOCK, COUNT, READ, LeaseScripts
from huleedu_service_libs.protocols import AtomicRedisClientProtocol
from huleedu_service_libs.redis_channels import (
    DEFAULT_CHANNEL_PREFIX,
    KeyName,
    UserKeys,
    connections_pattern,
    user_channel,
    user_of_connections,
)
from huleedu_service_libs.redis_commands import DEFAULT_TIMEOUT_S
from huleedu_service_libs.redis_script_batches import MAX_CALLS, ScriptBatches
from huleedu_service_libs.redis_scripts import ScriptCall

T = TypeVar("T")

logger = logging.getLogger(__name__)

DEFAULT_DURATION_S: Final = 15.0
# Redis may have come back empty, and until the next renewal nobody is counted.
RETRY_INTERVAL_S: Final = 1.0
# As many as could matter to a limit; a caller may have failed very often while Redis was away.
MAX_RELEASES_BEFORE_ACQUIRE: Final = 64


@dataclass(frozen=True, slots=True)
class Lease:
    """A connection that counts until `ends_at`, by Redis' clock, unless it is renewed."""

    connection_id: str
    ends_at: datetime


class _Held:
    """The leases of one user that this process holds."""

    __slots__ = ("connection_ids", "in_doubt_until", "is_being_renewed", "renewal")

    def __init__(self, connection_ids: tuple[str, ...], renewal: ScriptCall) -> None:
        self.connection_ids = connection_ids
        self.renewal = renewal
        self.is_being_renewed = False
        self.in_doubt_until = float("-inf")


class ConnectionLeases:
    """Acquires, renews and releases leases of `duration_s`; an async context manager.

    While entered it renews every third of the duration. Leaving it releases all that is held,
    and takes no longer than `timeout_s`, which also bounds each call.
    """

    def __init__(
        self,
        client: AtomicRedisClientProtocol,
        *,
        channel_prefix: str = DEFAULT_CHANNEL_PREFIX,
        duration_s: float = DEFAULT_DURATION_S,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        self._client = client
        self._channel_prefix = channel_prefix
        self._duration_s = duration_s
        self._interval_s = duration_s / 3
        # A node that hangs must not keep those of the others waiting until they lapse.
        self._renewal_timeout_s = min(timeout_s, self._interval_s)
        self._scripts = LeaseScripts.of(duration_s)
        self._batches = ScriptBatches(client, timeout_s=timeout_s)
        self._held: dict[str, _Held] = {}
        self._acquiring: set[tuple[str, str]] = set()
        self._unconfirmed = UnconfirmedReleases()
        self._queued: set[asyncio.Future[Any]] = set()
        # Until then a renewal that nobody has answered may still be carried out.
        self._doubt_ends_at = float("-inf")
        self._is_renewing_well = True
        self._renewing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._renewing = asyncio.create_task(self._keep_renewing())
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        renewing, self._renewing = self._renewing, None
        try:
            if renewing is not None:
                renewing.cancel()
                await asyncio.wait([renewing])
            for user_id, held in list(self._held.items()):
                for connection_id in held.connection_ids:
                    self._release_now(user_id, connection_id)
            for user_id, connection_id in list(self._acquiring):
                self._release_now(user_id, connection_id)
            while self._queued:
                await asyncio.wait(self._queued)
        finally:
            await self._batches.aclose()

    async def acquire(
        self, user_id: str, connection_id: str, *, limit: int, renewed_since: float = 0
    ) -> Admission:
        """Take one of the user's `limit` places.

        Leases that were not renewed for half a duration, or since `renewed_since` (which `clock`
        told) if that is given, count as lapsing: `FULL_FOR_NOW`.

        A `connection_id` is good for one place ever: raises ValueError for one that is in use or
        was released a short while ago. Raises redis-py's exceptions; what it may have taken then,
        or when it is cancelled, is given back as by `release`.
        """
        place = user_id, connection_id
        if self._renewing is None:
            raise RuntimeError("the leases are not entered")
        if place in self._acquiring or connection_id in self._connection_ids(user_id):
            raise ValueError(f"connection {connection_id} has a place already")
        key = self._key(user_id)
        releases = itertools.islice(
            self._unconfirmed.of_user(user_id).items(), MAX_RELEASES_BEFORE_ACQUIRE
        )
        args = [connection_id, limit, f"{renewed_since:.6f}", *_release_args(releases)]
        self._acquiring.add(place)
        try:
            reply = await self._batches.run(self._scripts.acquire.call(key, args))
        except BaseException:
            self.release(user_id, connection_id)
            raise
        if reply == b"released":
            self._acquiring.discard(place)
            raise ValueError(f"connection {connection_id} was released")
        admission = Admission(reply.decode())
        if place in self._acquiring:
            self._acquiring.remove(place)
            if admission is Admission.GRANTED:
                self._hold(user_id, (*self._connection_ids(user_id), connection_id))
        return admission

    def release(self, user_id: str, connection_id: str) -> None:
        """Give a place back; nothing happens where there is none.

        Returns at once, and Redis is told with what goes there next. Where it can't be told, the
        lease lapses.
        """
        if self._renewing is not None:
            self._release_now(user_id, connection_id)

    def _release_now(self, user_id: str, connection_id: str) -> None:
        now = asyncio.get_running_loop().time()
        held = self._held.get(user_id)
        if held is not None and connection_id in held.connection_ids:
            in_doubt = held.is_being_renewed or now < max(self._doubt_ends_at, held.in_doubt_until)
            self._hold(user_id, tuple(id_ for id_ in held.connection_ids if id_ != connection_id))
        elif (user_id, connection_id) in self._acquiring:
            self._acquiring.remove((user_id, connection_id))
            in_doubt = True
        else:
            return
        release = Release(in_doubt, now + self._duration_s)
        if self._unconfirmed.add(user_id, connection_id, release):
            args = _release_args([(connection_id, release)])
            confirmation = self._batches.queue(self._scripts.release.call(self._key(user_id), args))
            self._queued.add(confirmation)
            confirmation.add_done_callback(partial(self._on_release, user_id, connection_id))

    def _on_release(
        self, user_id: str, connection_id: str, confirmation: asyncio.Future[Any]
    ) -> None:
        self._queued.discard(confirmation)
        if not confirmation.cancelled() and confirmation.exception() is None:
            self._unconfirmed.confirm(user_id, connection_id)

    def renew_now(self, user_id: str) -> None:
        """Prove that what is held for the user is alive, without waiting for the next renewal."""
        held = self._held.get(user_id)
        if held is None or self._renewing is None:
            return
        # A release may overtake it.
        held.in_doubt_until = asyncio.get_running_loop().time() + self._duration_s
        renewal = self._batches.queue(held.renewal)
        self._queued.add(renewal)
        renewal.add_done_callback(self._on_renewal)

    def _on_renewal(self, renewal: asyncio.Future[Any]) -> None:
        self._queued.discard(renewal)
        if not renewal.cancelled() and renewal.exception() is not None:
            logger.warning("leases could not be confirmed: %s", renewal.exception())

    async def clock(self, user_id: str) -> float:
        """Seconds, by the clock of the server that has the user's leases.

        Raises redis-py's exceptions.
        """
        return float(await self._client.run_script(CLOCK, [self._key(user_id)], []))

    async def of_user(self, user_id: str) -> list[Lease]:
        """The user's leases that have not lapsed, the one that ends first in front.

        Raises redis-py's exceptions.
        """
        reply = await self._client.run_script(READ, [self._key(user_id)], [])
        return [
            Lease(connection_id.decode(), datetime.fromtimestamp(float(ends_at), UTC))
            for connection_id, ends_at in _in_batches(reply, 2)
        ]

    async def users(self) -> list[str]:
        """Who has any connection now, sorted. Looks at every key of Redis.

        Raises redis-py's exceptions.
        """
        found: list[str] = []
        keys = await self._client.scan_pattern(connections_pattern(self._channel_prefix))
        users = {user_of_connections(key, self._channel_prefix) for key in keys}
        for some in _in_batches([user_id for user_id in users if user_id is not None], MAX_CALLS):
            counts = await self._client.run_scripts(
                [COUNT.call(self._key(user_id)) for user_id in some]
            )
            for user_id, count in zip(some, counts, strict=True):
                if isinstance(count, Exception):
                    raise count
                if count:
                    found.append(user_id)
        return sorted(found)

    def _key(self, user_id: str) -> KeyName:
        return UserKeys.of(user_channel(user_id, self._channel_prefix)).connections

    def _connection_ids(self, user_id: str) -> tuple[str, ...]:
        held = self._held.get(user_id)
        return () if held is None else held.connection_ids

    def _hold(self, user_id: str, connection_ids: tuple[str, ...]) -> None:
        if not connection_ids:
            self._held.pop(user_id).connection_ids = ()
            return
        encoded = [connection_id.encode() for connection_id in connection_ids]
        renewal = self._scripts.renew.call(self._key(user_id), encoded)
        held = self._held.get(user_id)
        if held is None:
            self._held[user_id] = _Held(connection_ids, renewal)
        else:
            held.connection_ids, held.renewal = connection_ids, renewal

    async def _keep_renewing(self) -> None:
        loop = asyncio.get_running_loop()
        pause_s = self._interval_s
        while True:
            await asyncio.sleep(pause_s)
            began_at = loop.time()
            failure: Exception | None
            try:
                failure = await self._tell_redis()
            except Exception as error:
                # The last boundary of this task: whatever it is, leases must not lapse unnoticed.
                logger.exception("renewing connection leases failed; it goes on")
                failure = error
            self._report(failure)
            interval_s = self._interval_s
            if failure is not None:
                interval_s = min(interval_s, RETRY_INTERVAL_S)
            pause_s = max(0.0, began_at + interval_s - loop.time())

    def _report(self, failure: Exception | None) -> None:
        if failure is not None and self._is_renewing_well:
            logger.warning("connection leases can't be renewed: %s", failure)
        elif failure is None and not self._is_renewing_well:
            logger.info("connection leases are renewed again")
        self._is_renewing_well = failure is None

    async def _tell_redis(self) -> Exception | None:
        """Renew what is held, and repeat unconfirmed releases; why that failed, if it did."""
        self._unconfirmed.forget_lapsed(asyncio.get_running_loop().time())
        # A server that hangs holds up its own users.
        nodes = defaultdict[Hashable, tuple[list[_Held], list[str]]](lambda: ([], []))
        for held in self._held.values():
            nodes[self._client.node_of(held.renewal.keys[0])][0].append(held)
        for user_id in self._unconfirmed:
            nodes[self._client.node_of(self._key(user_id))][1].append(user_id)
        async with asyncio.TaskGroup() as tasks:
            rounds = [tasks.create_task(self._tell_node(*told)) for told in nodes.values()]
        return next((failure for one in rounds if (failure := one.result())), None)

    async def _tell_node(self, helds: list[_Held], leavers: list[str]) -> Exception | None:
        for some in _in_batches(helds, MAX_CALLS):
            failure = await self._renew([held for held in some if held.connection_ids])
            if failure is not None:
                return failure
        for users in _in_batches(leavers, MAX_CALLS):
            failure = await self._repeat_releases(users)
            if failure is not None:
                return failure
        return None

    async def _renew(self, helds: Sequence[_Held]) -> Exception | None:
        for held in helds:
            held.is_being_renewed = True
        answered = False
        try:
            replies = await self._run([held.renewal for held in helds])
            answered = not any(
                isinstance(reply, exceptions.ConnectionError | exceptions.TimeoutError)
                for reply in replies
            )
        finally:
            for held in helds:
                held.is_being_renewed = False
            if not answered:
                self._doubt_ends_at = asyncio.get_running_loop().time() + self._duration_s
        return _failure_of_all(replies)

    async def _repeat_releases(self, users: Sequence[str]) -> Exception | None:
        releases = [dict(self._unconfirmed.of_user(user_id)) for user_id in users]
        replies = await self._run(
            [
                self._scripts.release.call(self._key(user_id), _release_args(some.items()))
                for user_id, some in zip(users, releases, strict=True)
            ]
        )
        for user_id, some, reply in zip(users, releases, replies, strict=True):
            if not isinstance(reply, Exception):
                for connection_id in some:
                    self._unconfirmed.confirm(user_id, connection_id)
        return _failure_of_all(replies)

    async def _run(self, calls: Sequence[ScriptCall]) -> list[Any]:
        """The replies, errors among them."""
        try:
            async with asyncio.timeout(self._renewal_timeout_s):
                return await self._client.run_scripts(calls)
        except TimeoutError:
            return [exceptions.TimeoutError("Redis did not answer in time")] * len(calls)
        except exceptions.RedisError as error:
            return [error] * len(calls)


def _release_args(releases: Iterable[tuple[str, Release]]) -> list[str | int]:
    return [arg for id_, release in releases for arg in (id_, int(release.in_doubt))]


def _failure_of_all(replies: Sequence[Any]) -> Exception | None:
    """The first error where there is nothing else: what is wrong with one user is not Redis."""
    failures = [reply for reply in replies if isinstance(reply, Exception)]
    return failures[0] if failures and len(failures) == len(replies) else None


def _in_batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
