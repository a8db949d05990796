"""Commands for a Redis Cluster, each sent to the master of its keys' slot.

What always holds:

1. A command is sent again only after a node has refused to carry it out: with MOVED, ASK or
   TRYAGAIN, and a script with NOSCRIPT. What is lost on the way, or unanswered, raises.
2. One deadline bounds a call as a whole: finding the slot's master, every attempt, all nodes.
3. After a failed call and after MOVED, the next call looks up who has which slot. So it finds a
   new master as soon as the nodes know it.

redis-py's own client of a Cluster sends commands again after timeouts and lost connections, does
not wait for a connection when the pool is empty, and sends ASKING over whichever connection is
free rather than the command's own.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Iterable, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.commands.core import AsyncCoreCommands
from redis.event import EventDispatcher, EventDispatcherInterface

from huleedu_service_libs.redis_address import Endpoint
from huleedu_service_libs.redis_cluster_pipeline import ClusterPipeline
from huleedu_service_libs.redis_cluster_routes import (
    REDIRECTIONS,
    ClusterRoutes,
    Patience,
    slot_of,
    slot_of_command,
)
from huleedu_service_libs.redis_cluster_scripts import run_scripts
from huleedu_service_libs.redis_deadlines import KEYS_PER_SCAN, CallRules, watching
from huleedu_service_libs.redis_scripts import ScriptCall

T = TypeVar("T")


class ClusterRedis(AsyncCoreCommands):
    """The counterpart of `DeadlineRedis`; an async context manager.

    Each command raises redis-py's `TimeoutError` after `timeout_s` seconds, and redis-py's
    `ClusterDownError` where no node has the slot. PING and SCRIPT LOAD go to all masters; DEL and
    EXISTS may have keys of several slots, and are then not one step.
    """

    # redis-py's methods of commands want these two.
    _is_async_client: Literal[True] = True
    _event_dispatcher: EventDispatcherInterface = EventDispatcher()

    def __init__(self, routes: ClusterRoutes, timeout_s: float) -> None:
        self._routes = routes
        self._rules = CallRules(timeout_s, routes.doubt)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._routes.aclose()

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """The reply to a command, as redis-py converts it."""
        match args:
            case ("PING" | "SCRIPT LOAD", *_):
                call = self._at_all_masters(args, options)
            case ("DEL" | "EXISTS", *keys):
                call = self._sum_over_slots(args[0], keys)
            case _:
                call = self._at_slot(args, options)
        return await self._rules.run(args[0], call)

    async def _at_all_masters(self, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        masters = await self._routes.masters()
        replies = await _all(
            master.execute_command(*args, **options)  # type: ignore[no-untyped-call]  # redis-py's
            for master in masters
        )
        return replies[0]

    async def _sum_over_slots(self, command: str, keys: Sequence[str]) -> int:
        by_slot: dict[int, list[str]] = defaultdict(list)
        for key in keys:
            by_slot[slot_of(key)].append(key)
        counts = await _all(self._at_slot((command, *some), {}) for some in by_slot.values())
        return sum(counts)

    async def _at_slot(self, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        route = await self._routes.route(slot_of_command(args))
        patience = Patience(self._rules.timeout_s)
        while True:
            try:
                if route.asking:
                    return await _asking(route.server, args, options)
                return await route.server.execute_command(*args, **options)  # type: ignore[no-untyped-call]  # redis-py's
            except REDIRECTIONS as refusal:
                if patience.is_over:
                    raise
                route.redirect(refusal)
                await patience.pause()

    async def scan_keys(self, pattern: str) -> list[str]:
        """Matching keys of all masters, some perhaps twice; not all of a slot that is moving."""
        found: list[str] = []
        for master in await self._rules.run("SCAN", self._routes.masters()):
            cursor = None
            while cursor != 0:
                page = _scan(master, cursor or 0, pattern)
                cursor, keys = await self._rules.run("SCAN", page)
                found += keys
        return found

    async def begin_transaction(self, watch_keys: Sequence[str]) -> Pipeline:
        """A MULTI/EXEC pipeline for keys of one slot, with some of them watched already."""
        slot = slot_of(watch_keys[0]) if watch_keys else None
        route = await self._rules.run("CLUSTER", self._routes.route(slot))
        pipeline = ClusterPipeline(
            route.server.connection_pool,
            route.server.response_callbacks,
            transaction=True,
            shard_hint=None,
        )
        pipeline.rules, pipeline.routes = self._rules, self._routes
        return await watching(pipeline, watch_keys)

    async def publish_command(self) -> str:
        """SPUBLISH where channels belong to slots; the first time, asks the Cluster."""
        sharded = await self._rules.run("CLUSTER", self._routes.has_sharded_pubsub())
        return "SPUBLISH" if sharded else "PUBLISH"

    def node_of(self, key: str) -> Endpoint | None:
        """The master of the key's slot; None where it has none, or nobody was asked yet."""
        return self._routes.known_master(slot_of(key))

    async def run_scripts(self, calls: Sequence[ScriptCall]) -> list[Any]:
        """The replies to script calls, in one round trip for each node.

        What goes wrong with one node stands in the place of its replies.
        """
        return await run_scripts(self._routes, calls, self._rules)


async def _scan(master: Redis, cursor: int, pattern: str) -> tuple[int, list[str]]:
    next_cursor, keys = await master.scan(cursor, match=pattern, count=KEYS_PER_SCAN)
    return next_cursor, list(map(str, keys))


async def _asking(server: Redis, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    # In one write on one connection, for which ASKING holds.
    pipeline = server.pipeline(transaction=False)
    pipeline.execute_command("ASKING")
    pipeline.execute_command(*args, **options)
    _, reply = await pipeline.execute(raise_on_error=False)
    if isinstance(reply, Exception):
        raise reply
    return reply


async def _all(calls: Iterable[Awaitable[T]]) -> list[T]:
    """All results; raises the first error, once all calls have ended."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]
