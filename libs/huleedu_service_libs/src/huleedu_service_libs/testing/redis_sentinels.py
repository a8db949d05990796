"""A Redis master with replicas and sentinels, all of them real processes."""

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from redis.exceptions import ResponseError

from huleedu_service_libs.redis_server import RedisServer
from huleedu_service_libs.testing.admin import Admin
from huleedu_service_libs.testing.polling import until
from huleedu_service_libs.testing.replication import cut_replication, follows

SERVICE_NAME: Final = "mymaster"
# After twice as long a failover that has failed is tried again.
FAILOVER_TIMEOUT_MS: Final = 10_000


class RedisSentinels:
    """A master, `replicas` replicas and `sentinels` sentinels on free loopback ports.

    An async context manager: entered once every sentinel knows of all the others and of the
    replicas, and these have what the master has. A master that is silent for `down_after_ms` is
    taken for dead; with no more than a second so may be a new one, which is pinged for the first
    time a second after a failover. `options` and `sentinel_options` are further redis.conf
    directives, for example passwords, of the servers and of the sentinels.

    What waits raises TimeoutError as `polling.until` does.
    """

    def __init__(
        self,
        binary: Path | None = None,
        *,
        replicas: int = 1,
        sentinels: int = 3,
        down_after_ms: int = 1500,
        options: Mapping[str, str] | None = None,
        sentinel_options: Mapping[str, str] | None = None,
    ) -> None:
        self._binary = binary
        self._replica_count = replicas
        self._sentinel_count = sentinels
        self._down_after_ms = down_after_ms
        self._options = options or {}
        self._sentinel_options = sentinel_options or {}
        self._resources = AsyncExitStack()
        self._servers: list[RedisServer] = []
        self._master: RedisServer | None = None
        self._admins: dict[RedisServer, Admin] = {}
        self.sentinels: tuple[RedisServer, ...] = ()

    @property
    def master(self) -> RedisServer:
        """The master, as of the beginning or of the last wait for one, or for its replicas."""
        if self._master is None:
            raise RuntimeError("the sentinel set is not running: enter it with `async with`")
        return self._master

    @property
    def replicas(self) -> tuple[RedisServer, ...]:
        """All other servers, also dead ones."""
        return tuple(server for server in self._servers if server is not self._master)

    @property
    def url(self) -> str:
        """`redis+sentinel://127.0.0.1:<port>,…/mymaster`, without a password."""
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{SERVICE_NAME}"

    def admin(self, server: RedisServer) -> Admin:
        """A client of one server or sentinel of the set; replies are text."""
        return self._admins[server]

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
        async def run(options: Mapping[str, str | Sequence[str]], *, sentinel: bool) -> RedisServer:
            server = RedisServer(self._binary, options=options, sentinel=sentinel)
            await resources.enter_async_context(server)
            password = (self._sentinel_options if sentinel else self._options).get("requirepass")
            admin = Admin(server.socket_path, password)
            self._admins[server] = await resources.enter_async_context(admin)
            return server

        # A replica asks for its first data at once, and with it gets every later write.
        options = {"repl-diskless-sync-delay": "0", **self._options}
        self._master = await run(options, sentinel=False)
        of_master = {"replicaof": f"127.0.0.1 {self._master.port}"}
        replicas = [
            await run({**options, **of_master}, sentinel=False) for _ in range(self._replica_count)
        ]
        self._servers = [self._master, *replicas]
        for replica in replicas:
            await until(partial(follows, self.admin(replica), self._master.port))
        self.sentinels = tuple(
            [
                await run(self._sentinel_directives(), sentinel=True)
                for _ in range(self._sentinel_count)
            ]
        )
        await self._introduce_sentinels()
        await until(self._is_complete)

    def _sentinel_directives(self) -> dict[str, str | Sequence[str]]:
        quorum = self._sentinel_count // 2 + 1
        lines = [
            f"monitor {SERVICE_NAME} 127.0.0.1 {self.master.port} {quorum}",
            f"down-after-milliseconds {SERVICE_NAME} {self._down_after_ms}",
            f"failover-timeout {SERVICE_NAME} {FAILOVER_TIMEOUT_MS}",
        ]
        if "requirepass" in self._options:
            lines.append(f"auth-pass {SERVICE_NAME} {self._options['requirepass']}")
        if "requirepass" in self._sentinel_options:
            lines.append(f"sentinel-pass {self._sentinel_options['requirepass']}")
        return {"sentinel": lines, **self._sentinel_options}

    async def _introduce_sentinels(self) -> None:
        # What each says of itself over the master every two seconds anyway.
        for sentinel in self.sentinels:
            name = await self.admin(sentinel).ask("SENTINEL", "MYID")
            hello = (
                f"127.0.0.1,{sentinel.port},{name},0,{SERVICE_NAME},127.0.0.1,{self.master.port},0"
            )
            for other in self.sentinels:
                if other is not sentinel:
                    await self.admin(other).publish("__sentinel__:hello", hello)

    async def _is_complete(self) -> bool:
        for sentinel in self.sentinels:
            known = [
                flags
                for kind in ("SENTINELS", "REPLICAS")
                for flags in await self._flags(sentinel, kind)
            ]
            if len(known) != self._sentinel_count - 1 + self._replica_count:
                return False
            if any(flags & {"s_down", "disconnected"} for flags in known):
                return False
        return True

    async def _flags(self, sentinel: RedisServer, kind: str) -> list[set[str]]:
        known = await self.admin(sentinel).ask("SENTINEL", kind, SERVICE_NAME)
        return [set(one[one.index("flags") + 1].split(",")) for one in known]

    async def kill_master(self) -> RedisServer:
        """SIGKILL the master; `launch()` brings the returned server back with its old role."""
        await self.master.kill()
        return self.master

    async def promote_replica(self) -> None:
        """Have a sentinel begin a failover while the master is well.

        The old master stays a master in its own eyes until `rejoin()`; the sentinels themselves
        demote it after some ten seconds.
        """
        await until(self._failover_has_begun)

    async def _failover_has_begun(self) -> bool:
        sentinel = self.admin(self.sentinels[0])
        try:
            await sentinel.ask("SENTINEL", "FAILOVER", SERVICE_NAME)
        except ResponseError as error:
            # It has not noticed yet that a replica has come back, or is at the last one still.
            if not str(error).startswith(("NOGOODSLAVE", "INPROG")):
                raise
            return False
        return True

    async def replace_master(self) -> RedisServer:
        """Have the sentinels replace a master that is well, and return the new one.

        As after `promote_replica()`, the old one stays a master in its own eyes. A failover that
        is given up is begun again: a sentinel that takes the replica for a former master, as it
        was some seconds ago, demotes it at once.
        """
        await until(partial(self._is_replaced, self.master))
        return self.master

    async def _is_replaced(self, old: RedisServer) -> bool:
        if await self._named_by(self.sentinels[0]) == old.port:
            await self._failover_has_begun()
            return False
        return await self._agree_on_other_than(old)

    async def new_master(self) -> RedisServer:
        """Wait until every running sentinel names another master, and return that one."""
        old = self.master
        await until(partial(self._agree_on_other_than, old))
        return self.master

    async def _agree_on_other_than(self, old: RedisServer) -> bool:
        named = await self._named_master()
        # The old one may hang.
        if named is None or named is old or not await self._is_master(named):
            return False
        self._master = named
        return True

    async def _named_master(self) -> RedisServer | None:
        """By every running sentinel; None where they do not agree."""
        asked = [sentinel for sentinel in self.sentinels if sentinel.is_running]
        ports = {await self._named_by(sentinel) for sentinel in asked}
        if len(ports) != 1:
            return None
        return next(server for server in self._servers if server.port in ports)

    async def _named_by(self, sentinel: RedisServer) -> int:
        _, port = await self.admin(sentinel).ask(
            "SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE_NAME
        )
        return int(port)

    async def _is_master(self, server: RedisServer) -> bool:
        return bool((await self.admin(server).ask("ROLE"))[0] == "master")

    async def rejoin(self, server: RedisServer) -> None:
        """Make a former master, dead or alive, a replica of the present one, and wait for it."""
        if not server.is_running:
            await server.launch()
        await self._let_follow([server])

    async def cut_replication(self) -> None:
        """Disconnect all replicas: what is written from now on, a failover loses.

        Within ten times `down_after_ms` the master has to be dead: the sentinels don't promote a
        replica that has been without its master for longer.
        """
        replicas = [self.admin(replica) for replica in self.replicas]
        await cut_replication(self.admin(self.master), replicas)

    async def mend_replication(self) -> None:
        """Let the replicas connect again, and wait until they have what the master has."""
        await self._let_follow([server for server in self._servers if server.is_running])

    async def _let_follow(self, servers: Sequence[RedisServer]) -> None:
        for server in servers:
            password = self._options.get("masterauth", "")
            await self.admin(server).config_set("masterauth", password)
        await until(partial(self._follow, servers))

    async def _follow(self, servers: Sequence[RedisServer]) -> bool:
        # Asked each time: on a busy machine they may find a master dead that is only slow.
        master = await self._named_master()
        if master is None or not await self._is_master(master):
            return False
        self._master = master
        for server in servers:
            if server is not master and not await follows(self.admin(server), master.port):
                # It changes nothing for one that is about to.
                await self.admin(server).replicaof("127.0.0.1", master.port)
                return False
        return True
