"""A Redis Cluster of real processes, with slots that move and nodes that die."""

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from huleedu_service_libs.redis_server import PORT_ATTEMPTS, RedisServer, RedisServerError
from huleedu_service_libs.testing.admin import Admin
from huleedu_service_libs.testing.polling import until
from huleedu_service_libs.testing.replication import cut_replication, follows, mend_replication

SLOTS: Final = 16384
# Redis 6 has no directive for it.
BUS_PORT_OFFSET: Final = 10000
MIGRATE_TIMEOUT_MS: Final = 5000
KEYS_PER_MIGRATE: Final = 100
# Redis gives a failover on demand up after 5 s, without a word.
MANUAL_FAILOVER_S: Final = 6.0


class RedisCluster:
    """`masters` masters with an even share of the slots, and replicas, on loopback ports.

    An async context manager: entered once every node says `cluster_state:ok` and knows who has
    which slot. A node that is silent for `node_timeout_ms` is taken for dead. `options` are
    further redis.conf directives of every node, for example a password.

    What waits raises TimeoutError as `polling.until` does.
    """

    def __init__(
        self,
        binary: Path | None = None,
        *,
        masters: int = 3,
        replicas_per_master: int = 0,
        node_timeout_ms: int = 1000,
        options: Mapping[str, str] | None = None,
    ) -> None:
        self._binary = binary
        self._master_count = masters
        self._replicas_per_master = replicas_per_master
        self._node_timeout_ms = node_timeout_ms
        self._options = options or {}
        self._resources = AsyncExitStack()
        self._admins: dict[RedisServer, Admin] = {}
        self._ids: dict[RedisServer, str] = {}
        self.nodes: tuple[RedisServer, ...] = ()
        """All nodes, also dead ones; the first are those that began as masters."""

    @property
    def url(self) -> str:
        """`redis+cluster://127.0.0.1:<port>,…`, every node in it, without a password."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def admin(self, node: RedisServer) -> Admin:
        """A client of one node, which does not follow redirections; replies are text."""
        return self._admins[node]

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as resources:
            await self._launch(resources)
            self._resources = resources.pop_all()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._resources.aclose()

    async def _launch(self, resources: AsyncExitStack) -> None:
        count = self._master_count * (1 + self._replicas_per_master)
        self.nodes = tuple([await self._launch_node(resources) for _ in range(count)])
        for epoch, node in enumerate(self.nodes, start=1):
            # Nodes of equal epochs would first have to find out which of them gives way.
            await self._cluster(node, "SET-CONFIG-EPOCH", epoch)
            self._ids[node] = await self._cluster(node, "MYID")
            await self._cluster(self.nodes[0], "MEET", "127.0.0.1", node.port)
        masters = self.nodes[: self._master_count]
        replicas = self.nodes[self._master_count :]
        for index, master in enumerate(masters):
            first = SLOTS * index // len(masters)
            end = SLOTS * (index + 1) // len(masters)
            await self._cluster(master, "ADDSLOTS", *range(first, end))
        of = {replica: masters[index % len(masters)] for index, replica in enumerate(replicas)}
        for replica, master in of.items():
            await until(partial(self._knows, replica, master))
            await self._cluster(replica, "REPLICATE", self._ids[master])
        for node in self.nodes:
            await until(partial(self._is_complete, node))
        for replica in replicas:
            await until(partial(self._follows, replica, of[replica]))

    async def _launch_node(self, resources: AsyncExitStack) -> RedisServer:
        for attempt in range(PORT_ATTEMPTS):
            node = RedisServer(
                self._binary,
                port=_free_port_with_bus_port(),
                options={
                    "cluster-enabled": "yes",
                    "cluster-node-timeout": str(self._node_timeout_ms),
                    # A replica that has been without its master for long may take over too.
                    "cluster-replica-validity-factor": "0",
                    "repl-diskless-sync-delay": "0",
                    **self._options,
                },
            )
            try:
                await resources.enter_async_context(node)
            except RedisServerError as error:
                # Between the probe and the launch the ports belong to nobody.
                last = attempt + 1 == PORT_ATTEMPTS
                if last or "Address already in use" not in str(error):
                    raise
            else:
                break
        admin = Admin(node.socket_path, self._options.get("requirepass"))
        self._admins[node] = await resources.enter_async_context(admin)
        return node

    async def _cluster(self, node: RedisServer, *command: str | int) -> str:
        return str(await self.admin(node).ask("CLUSTER", *command))

    async def _knows(self, node: RedisServer, other: RedisServer) -> bool:
        return any(self._ids[other] == line[0] for line in await self._table(node))

    async def _is_complete(self, node: RedisServer) -> bool:
        table = await self._table(node)
        flags = [flag for _, _, flags, *_ in table for flag in flags.split(",")]
        return (
            len(table) == len(self.nodes)
            and flags.count("master") == self._master_count
            and not {"handshake", "fail", "fail?"} & set(flags)
            and await self._is_ok(node)
        )

    async def _is_ok(self, node: RedisServer) -> bool:
        return "cluster_state:ok" in await self._cluster(node, "INFO")

    async def _table(self, node: RedisServer) -> list[list[str]]:
        """A line of words per node: id, address, flags, master's id or -, four more, slots."""
        return [line.split() for line in (await self._cluster(node, "NODES")).splitlines()]

    async def _follows(self, replica: RedisServer, master: RedisServer) -> bool:
        return await follows(self.admin(replica), master.port)

    @property
    def running_nodes(self) -> tuple[RedisServer, ...]:
        """Those whose process is there."""
        return tuple(node for node in self.nodes if node.is_running)

    async def node_of(self, slot: int) -> RedisServer:
        """The master of the slot, in the eyes of the first running node.

        Raises LookupError for a slot that nobody has.
        """
        return await self._node_of(slot, self.running_nodes[0])

    async def _node_of(self, slot: int, asked: RedisServer) -> RedisServer:
        for first, last, master, *_ in await self.admin(asked).ask("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == master[1])
        raise LookupError(f"no node has slot {slot}")

    async def replicas_of(self, master: RedisServer) -> tuple[RedisServer, ...]:
        """The replicas of a master, in the eyes of the first running node."""
        table = await self._table(self.running_nodes[0])
        ids = {identity for identity, _, _, of, *_ in table if of == self._ids[master]}
        return tuple(node for node in self.nodes if self._ids[node] in ids)

    async def successor(self, slot: int, old: RedisServer) -> RedisServer:
        """Wait until all running nodes but `old` have another master for the slot; return it.

        By then the Cluster is in order again in the eyes of each of them.
        """
        others = [node for node in self.running_nodes if node is not old]
        await until(partial(self._agree_on_other_than, old, slot, others))
        return await self._node_of(slot, others[0])

    async def _agree_on_other_than(
        self, old: RedisServer, slot: int, asked: Sequence[RedisServer]
    ) -> bool:
        named = set()
        for node in asked:
            try:
                named.add(await self._node_of(slot, node))
            except LookupError:
                return False
            if not await self._is_ok(node):
                return False
        return len(named) == 1 and old not in named

    async def add_master(self) -> RedisServer:
        """A further master, without slots: `migrate()` gives it some. Returns once all know it."""
        node = await self._launch_node(self._resources)
        self._ids[node] = await self._cluster(node, "MYID")
        await self._cluster(node, "SET-CONFIG-EPOCH", len(self.nodes) + 1)
        await self._cluster(node, "MEET", "127.0.0.1", self.nodes[0].port)
        self.nodes = (*self.nodes, node)
        self._master_count += 1
        for one in self.running_nodes:
            await until(partial(self._is_complete, one))
        return node

    async def promote(self, replica: RedisServer) -> None:
        """Have a replica take over from its master, which lives on as its replica."""
        while True:
            await self._cluster(replica, "FAILOVER")
            with suppress(TimeoutError):
                async with asyncio.timeout(MANUAL_FAILOVER_S):
                    return await until(partial(self._is_master, replica))

    async def cut_replication(self, master: RedisServer) -> None:
        """Disconnect the master's replicas: what it gets from now on, a failover loses."""
        replicas = [self.admin(replica) for replica in await self.replicas_of(master)]
        await cut_replication(self.admin(master), replicas)

    async def mend_replication(self, master: RedisServer) -> None:
        """Let the replicas connect again, and wait until they have what the master has."""
        password = self._options.get("masterauth", "")
        for replica in await self.replicas_of(master):
            await mend_replication(self.admin(replica), master.port, password)

    @asynccontextmanager
    async def migrating(self, slot: int, to_node: RedisServer) -> AsyncIterator[None]:
        """Within it the slot is on its way, with all keys still at the source: it answers ASK.

        `move_keys()` moves those that are there; what is left is moved at the end.
        """
        source = await self.node_of(slot)
        await self._cluster(to_node, "SETSLOT", slot, "IMPORTING", self._ids[source])
        await self._cluster(source, "SETSLOT", slot, "MIGRATING", self._ids[to_node])
        yield
        await self.move_keys(slot, to_node)
        # The target first: a source without the slot would send clients there too early.
        masters = [node for node in self.running_nodes if await self._is_master(node)]
        for node in [to_node, source, *masters]:
            await self._cluster(node, "SETSLOT", slot, "NODE", self._ids[to_node])

    async def _is_master(self, node: RedisServer) -> bool:
        return bool((await self.admin(node).ask("ROLE"))[0] == "master")

    async def move_keys(self, slot: int, to_node: RedisServer) -> None:
        """Move the keys of a slot that is `migrating()`, many at a time, as redis-cli does."""
        source = self.admin(await self.node_of(slot))
        password = self._options.get("requirepass")
        auth = ("AUTH", password) if password else ()
        while keys := await source.ask("CLUSTER", "GETKEYSINSLOT", slot, KEYS_PER_MIGRATE):
            await source.ask(
                *("MIGRATE", "127.0.0.1", to_node.port, "", 0, MIGRATE_TIMEOUT_MS),
                *(*auth, "KEYS", *keys),
            )

    async def migrate(self, slot: int, to_node: RedisServer) -> None:
        """Move the slot with all its keys."""
        async with self.migrating(slot, to_node):
            pass


def _free_port_with_bus_port() -> int:
    while True:
        with socket.socket() as port_probe, socket.socket() as bus_probe:
            port_probe.bind(("127.0.0.1", 0))
            port: int = port_probe.getsockname()[1]
            try:
                bus_probe.bind(("127.0.0.1", port + BUS_PORT_OFFSET))
            except (OSError, OverflowError):  # taken, or there is no such port
                continue
            return port
