"""What a soak runs on: a Redis of one kind or another, with the faults that this kind has."""

import signal
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Final, Self

from huleedu_service_libs.redis_channels import hash_slot, user_channel
from huleedu_service_libs.redis_server import RedisServer
from huleedu_service_libs.testing.admin import Admin
from huleedu_service_libs.testing.polling import until
from huleedu_service_libs.testing.redis_binaries import packaged_valkey_server
from huleedu_service_libs.testing.redis_cluster import SLOTS, RedisCluster
from huleedu_service_libs.testing.redis_sentinels import SERVICE_NAME, RedisSentinels
from huleedu_service_libs.testing.replication import follows
from huleedu_service_libs.testing.tcp_proxy import TcpProxy, is_message
from tests.fault.durability import DURABLE
from tests.load.faults import Cause, Fault, Side, interrupt, last_for


class Stage(ABC):
    """An async context manager: entered once Redis is there. `binary` is its server."""

    forgets: bool
    """Whether Redis may lose what it has acknowledged."""

    def __init__(self, users: Sequence[str], binary: Path | None) -> None:
        self._users = users
        self._binary = binary
        self._resources = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as resources:
            await self._open(resources)
            self._resources = resources.pop_all()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._resources.aclose()

    @abstractmethod
    async def _open(self, resources: AsyncExitStack) -> None: ...

    @property
    @abstractmethod
    def redis_url(self) -> str:
        """For publishers."""

    @property
    def service_redis_url(self) -> str:
        """For the service, perhaps through a proxy."""
        return self.redis_url

    @abstractmethod
    def masters(self) -> Sequence[Admin]:
        """Of the servers that are written to."""

    @abstractmethod
    def faults(self) -> Sequence[Fault]:
        """Those of Redis, and of the way to it."""


class DurableStage(Stage):
    """One server that keeps what it has acknowledged."""

    forgets = False
    _options: Mapping[str, str] = DURABLE

    async def _open(self, resources: AsyncExitStack) -> None:
        self._deaf = False
        server = RedisServer(self._binary, options=self._options)
        self._server = await resources.enter_async_context(server)
        self._admin = await resources.enter_async_context(Admin(server.port))
        proxy = TcpProxy(server.port, keep=lambda reply: not (self._deaf and is_message(reply)))
        self._proxy = await resources.enter_async_context(proxy)

    @property
    def redis_url(self) -> str:
        return self._server.url

    @property
    def service_redis_url(self) -> str:
        return self._proxy.url

    def masters(self) -> Sequence[Admin]:
        return (self._admin,)

    def faults(self) -> Sequence[Fault]:
        return (
            Fault("Redis hangs", Side.REDIS, self._hang),
            Fault("Redis killed", Side.REDIS, self._kill),
            Fault("way to Redis cut off", Side.LINK, self._interrupt),
            Fault("subscriptions deaf", Side.LINK, self._deafen),
        )

    async def _hang(self, choose: Random) -> None:
        self._server.signal(signal.SIGSTOP)
        await last_for(choose.uniform(0.1, 4))
        self._server.signal(signal.SIGCONT)

    async def _kill(self, choose: Random) -> None:
        await self._server.kill()
        await last_for(choose.uniform(0, 3))
        await self._server.launch()

    async def _interrupt(self, choose: Random) -> None:
        await interrupt([self._proxy], choose)

    async def _deafen(self, choose: Random) -> None:
        self._deaf = True
        await last_for(choose.uniform(0.1, 4))
        self._deaf = False


class ForgetfulStage(DurableStage):
    """One server without persistence, but for a snapshot now and then."""

    forgets = True
    _options: Mapping[str, str] = {}

    def faults(self) -> Sequence[Fault]:
        return (
            *super().faults(),
            Fault("everything flushed", Side.REDIS, self._flush),
            Fault("snapshot made", Side.REDIS, self._save),
        )

    async def _flush(self, choose: Random) -> None:
        for _ in range(choose.randint(1, 3)):
            await self._admin.flushall()
            await last_for(choose.uniform(0, 0.5))

    async def _save(self, choose: Random) -> None:
        # Whatever kills Redis from now on takes it back here.
        await self._admin.save()
        await last_for(choose.uniform(0, 1))


class SentinelStage(Stage):
    """A master with two replicas, and three sentinels."""

    forgets = True

    async def _open(self, resources: AsyncExitStack) -> None:
        sentinels = RedisSentinels(self._binary, replicas=2)
        self._sentinels = await resources.enter_async_context(sentinels)

    @property
    def redis_url(self) -> str:
        return self._sentinels.url

    def masters(self) -> Sequence[Admin]:
        return (self._sentinels.admin(self._sentinels.master),)

    def faults(self) -> Sequence[Fault]:
        return (
            self._fault("master killed", self._kill),
            self._fault("master killed while replicas lag", self._kill_with_lag),
            self._fault("master replaced on purpose", self._promote),
            self._fault("master hangs", self._hang),
            self._fault("master emptied", self._empty),
            self._fault("sentinel killed", self._kill_sentinel),
        )

    def _fault(self, name: str, cause: Cause) -> Fault:
        async def settled(choose: Random) -> None:
            await self._settle()
            await cause(choose)

        return Fault(name, Side.REDIS, settled)

    async def _settle(self) -> None:
        # A sentinel whose new master dies in mid-failover never comes out of it.
        await until(self._is_at_rest)
        # On a busy machine they may have found a master dead that was only slow.
        await self._sentinels.mend_replication()

    async def _is_at_rest(self) -> bool:
        for sentinel in self._sentinels.sentinels:
            master = await self._sentinels.admin(sentinel).ask("SENTINEL", "MASTER", SERVICE_NAME)
            flags = set(master[master.index("flags") + 1].split(","))
            if flags & {"failover_in_progress", "s_down", "o_down", "disconnected"}:
                return False
        return True

    async def _kill(self, choose: Random) -> None:
        old = await self._sentinels.kill_master()
        await self._new_master()
        await last_for(choose.uniform(0, 1))
        await self._come_back(old)

    async def _kill_with_lag(self, choose: Random) -> None:
        await self._sentinels.cut_replication()
        await last_for(choose.uniform(0, 3))
        await self._kill(choose)

    async def _promote(self, choose: Random) -> None:
        old = self._sentinels.master
        await self._sentinels.replace_master()
        # For so long there are two masters.
        await last_for(choose.uniform(0, 2))
        await self._come_back(old)

    async def _hang(self, choose: Random) -> None:
        old = self._sentinels.master
        old.signal(signal.SIGSTOP)
        await self._new_master()
        old.signal(signal.SIGCONT)
        await last_for(choose.uniform(0, 2))
        await self._come_back(old)

    async def _new_master(self) -> None:
        try:
            await self._sentinels.new_master()
        except TimeoutError:
            # Sentinels that could not agree on a leader try again only half a minute later.
            await self._sentinels.new_master()

    async def _come_back(self, old: RedisServer) -> None:
        await self._sentinels.rejoin(old)
        await self._sentinels.mend_replication()

    async def _empty(self, _: Random) -> None:
        # What a master without persistence does that restarts before the sentinels notice.
        master = self._sentinels.admin(self._sentinels.master)
        await master.flushall()
        await master.client_kill_filter(skipme=True)

    async def _kill_sentinel(self, choose: Random) -> None:
        sentinel = choose.choice(self._sentinels.sentinels)
        await sentinel.kill()
        await last_for(choose.uniform(0, 2))
        await sentinel.launch()


class ClusterStage(Stage):
    """Three masters with a replica each."""

    forgets = True

    async def _open(self, resources: AsyncExitStack) -> None:
        binary = self._binary or packaged_valkey_server()
        self._cluster = await resources.enter_async_context(
            RedisCluster(binary, replicas_per_master=1)
        )
        self._slots = [hash_slot(user_channel(user)) for user in self._users]

    @property
    def redis_url(self) -> str:
        return self._cluster.url

    def masters(self) -> Sequence[Admin]:
        return tuple(self._cluster.admin(node) for node in self._cluster.running_nodes)

    def faults(self) -> Sequence[Fault]:
        return (
            Fault("slots moved", Side.REDIS, self._migrate),
            Fault("node killed", Side.REDIS, self._kill),
            Fault("node killed while its replica lags", Side.REDIS, self._kill_with_lag),
            Fault("node replaced on purpose", Side.REDIS, self._promote),
            Fault("node hangs", Side.REDIS, self._hang),
            Fault("node restarts with nothing", Side.REDIS, self._restart),
        )

    async def _migrate(self, choose: Random) -> None:
        masters = list({await self._cluster.node_of(slot) for slot in range(0, SLOTS, 1000)})
        for slot in choose.sample(self._slots, choose.randint(1, len(self._slots))):
            owner = await self._cluster.node_of(slot)
            target = choose.choice([node for node in masters if node is not owner])
            async with self._cluster.migrating(slot, target):
                await last_for(choose.uniform(0, 1))

    async def _kill(self, choose: Random) -> None:
        slot = choose.choice(self._slots)
        old = await self._cluster.node_of(slot)
        await old.kill()
        new = await self._cluster.successor(slot, old)
        await last_for(choose.uniform(0, 1))
        await old.launch()
        await self._follows(old, new)

    async def _kill_with_lag(self, choose: Random) -> None:
        slot = choose.choice(self._slots)
        old = await self._cluster.node_of(slot)
        await self._cluster.cut_replication(old)
        await last_for(choose.uniform(0, 3))
        await old.kill()
        new = await self._cluster.successor(slot, old)
        # It was a replica and keeps what its own master would not accept.
        await self._cluster.admin(new).config_set("masterauth", "")
        await old.launch()
        await self._follows(old, new)

    async def _promote(self, choose: Random) -> None:
        slot = choose.choice(self._slots)
        old = await self._cluster.node_of(slot)
        replicas = await self._cluster.replicas_of(old)
        await self._cluster.promote(choose.choice(replicas))
        new = await self._cluster.successor(slot, old)
        await self._follows(old, new)

    async def _hang(self, choose: Random) -> None:
        slot = choose.choice(self._slots)
        old = await self._cluster.node_of(slot)
        old.signal(signal.SIGSTOP)
        try:
            await until(lambda: self._is_replaced(slot, old))
        finally:
            old.signal(signal.SIGCONT)
        await self._follows(old, await self._cluster.successor(slot, old))

    async def _is_replaced(self, slot: int, old: RedisServer) -> bool:
        for node in self._cluster.running_nodes:
            if node is not old:
                for first, last, master, *_ in await self._cluster.admin(node).ask(
                    "CLUSTER", "SLOTS"
                ):
                    if first <= slot <= last and master[1] == old.port:
                        return False
        return True

    async def _restart(self, choose: Random) -> None:
        # Before the others have noticed.
        node = await self._cluster.node_of(choose.choice(self._slots))
        await node.kill()
        await node.launch()

    async def _follows(self, replica: RedisServer, master: RedisServer) -> None:
        await until(lambda: follows(self._cluster.admin(replica), master.port))


STAGES: Final[Mapping[str, type[Stage]]] = {
    "durable": DurableStage,
    "forgetful": ForgetfulStage,
    "sentinel": SentinelStage,
    "cluster": ClusterStage,
}
