"""From a key to the node of a Redis Cluster that serves it, redirections included."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from redis.asyncio import BlockingConnectionPool, Redis
from redis.crc import key_slot
from redis.exceptions import AskError, ClusterDownError, MovedError, ResponseError, TryAgainError

from huleedu_service_libs.redis_address import Endpoint, RedisAddress
from huleedu_service_libs.redis_cluster_survey import ClusterSurvey, ClusterTopology
from huleedu_service_libs.redis_lookups import SharedLookup, ask, first_answer

REDIRECTIONS: Final = (MovedError, AskError, TryAgainError)
"""A node answers so instead of carrying a command out."""

# MOVED to the new master, ASK to the one that it is being moved to: these cost no pause.
IMMEDIATE_REDIRECTIONS: Final = 2
FIRST_PAUSE_S: Final = 0.01
LONGEST_PAUSE_S: Final = 0.25
_SCRIPT_COMMANDS: Final = frozenset({"EVAL", "EVALSHA"})


def slot_of_command(command: Sequence[Any]) -> int | None:
    """The slot of its first key, which is the first argument but for scripts.

    None for a command without arguments and a script without keys. Where a command has its keys
    elsewhere, the node that is asked in error answers MOVED.
    """
    if command[0] in _SCRIPT_COMMANDS:
        key = command[3] if int(command[2]) else None
    else:
        key = command[1] if len(command) > 1 else None
    return None if key is None else slot_of(key)


def slot_of(key: object) -> int:
    """The hash slot of a key or shard channel; texts are UTF-8."""
    return key_slot(key if isinstance(key, bytes) else str(key).encode())


class Route:
    """Where one command has to be sent now."""

    __slots__ = ("_routes", "asking", "endpoint")

    def __init__(self, routes: "ClusterRoutes", endpoint: Endpoint) -> None:
        self._routes = routes
        self.endpoint = endpoint
        self.asking = False
        """Whether ASKING has to precede it."""

    @property
    def server(self) -> Redis:
        """The node, without a deadline."""
        return self._routes.server(self.endpoint)

    def redirect(self, refusal: ResponseError) -> None:
        """Turn to where a refused command is to be sent; nowhere else for TRYAGAIN."""
        if isinstance(refusal, AskError):
            # Without a host it is the one that was asked.
            self.endpoint = Endpoint(refusal.host or self.endpoint.host, refusal.port)
            self.asking = not isinstance(refusal, MovedError)
            if isinstance(refusal, MovedError):
                self._routes.moved(refusal.slot_id, self.endpoint)


class Patience:
    """How long a command that is redirected again and again is sent again: half its time."""

    def __init__(self, timeout_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._ends_at = self._loop.time() + timeout_s / 2
        self._redirections = 0

    @property
    def is_over(self) -> bool:
        """Whether the refusal is the answer."""
        return self._loop.time() >= self._ends_at

    async def pause(self) -> None:
        """Let the nodes agree among themselves."""
        self._redirections += 1
        pauses = self._redirections - IMMEDIATE_REDIRECTIONS
        if pauses > 0:
            await asyncio.sleep(min(FIRST_PAUSE_S * 2**pauses, LONGEST_PAUSE_S))


class ClusterRoutes:
    """Knows the master of each slot, and holds a client for each node until `aclose()`."""

    def __init__(
        self,
        address: RedisAddress,
        open_pool: Callable[[Endpoint], BlockingConnectionPool],
        timeout_s: float,
    ) -> None:
        self._address = address
        self._open_pool = open_pool
        self._lookup = SharedLookup(ClusterSurvey(address, timeout_s=timeout_s).topology)
        self._servers: dict[Endpoint, Redis] = {}
        self._topology: ClusterTopology | None = None
        self._has_sharded_pubsub: bool | None = None
        # What MOVED has told since the topology was found.
        self._moved: dict[int, Endpoint] = {}
        self._closing: set[asyncio.Task[None]] = set()

    async def aclose(self) -> None:
        """Close every connection."""
        await asyncio.gather(*self._closing, return_exceptions=True)
        for server in self._servers.values():
            await server.aclose()
        self._servers.clear()

    def doubt(self) -> None:
        """Look the topology up before the next command."""
        self._lookup.doubt()

    async def topology(self) -> ClusterTopology:
        """Who has which slots, as far as nobody doubts it."""
        topology = await self._lookup.known()
        if topology is not self._topology:
            self._topology = topology
            self._moved.clear()
            self._close_idle_connections(topology)
        return topology

    async def has_sharded_pubsub(self) -> bool:
        """Whether the Cluster has SPUBLISH, by the word of one node; all should be of one kind."""
        if self._has_sharded_pubsub is None:
            topology = await self.topology()
            ((spublish,),) = await first_answer(
                {node: partial(self._ask, node) for node in topology.masters},
                "no node tells whether it has SPUBLISH",
            )
            self._has_sharded_pubsub = spublish is not None
        return self._has_sharded_pubsub

    async def _ask(self, node: Endpoint) -> list[Any]:
        return await ask(self._address.connection(node), ["COMMAND", "INFO", "SPUBLISH"])

    async def masters(self) -> list[Redis]:
        """A client for each master that has slots."""
        return [self.server(master) for master in (await self.topology()).masters]

    async def route(self, slot: int | None) -> Route:
        """To the slot's master; for no slot, to any. Raises `ClusterDownError` if it has none."""
        topology = await self.topology()
        if slot is None:
            return Route(self, next(iter(topology.masters)))
        master = self.known_master(slot)
        if master is None:
            raise ClusterDownError(f"no node has the hash slot {slot}")
        return Route(self, master)

    def known_master(self, slot: int) -> Endpoint | None:
        """Who has the slot, by what was found last; asks nobody."""
        if self._topology is None:
            return None
        return self._moved.get(slot) or self._topology.master_of(slot)

    def moved(self, slot: int, master: Endpoint) -> None:
        """A node has said so, and others may have got more."""
        self._moved[slot] = master
        self.doubt()

    def server(self, endpoint: Endpoint) -> Redis:
        """The client for one node, without a deadline."""
        server = self._servers.get(endpoint)
        if server is None:
            server = Redis(connection_pool=self._open_pool(endpoint))
            server.auto_close_connection_pool = True
            self._servers[endpoint] = server
        return server

    def _close_idle_connections(self, topology: ClusterTopology) -> None:
        # Those to nodes that are masters no longer: they may be gone, or hang.
        masters = topology.masters
        for endpoint, server in self._servers.items():
            if endpoint not in masters:
                closing = asyncio.create_task(
                    server.connection_pool.disconnect(inuse_connections=False)
                )
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)
