"""Where tabs find the service: what a load balancer knows of its processes."""

import signal
from contextlib import AsyncExitStack
from random import Random
from types import TracebackType
from typing import Self

from huleedu_service_libs.testing.tcp_proxy import TcpProxy
from tests.fault.peers import assert_nothing_went_wrong
from tests.fault.traffic import SETTINGS
from tests.service_process import ServiceProcess


class Endpoints:
    """Processes of the service that come and go.

    An async context manager; what each process has logged is in order when it ends. With
    `proxied` the tabs' way to each of them is a proxy.
    """

    def __init__(self, redis_url: str, *, proxied: bool = False, seed: int = 0) -> None:
        self._redis_url = redis_url
        self._proxied = proxied
        self._choose = Random(seed)
        self._resources = AsyncExitStack()
        self.running: list[ServiceProcess] = []
        self.proxies: dict[ServiceProcess, TcpProxy] = {}
        """Of the running processes, where they are proxied."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        outputs = [process.output() for process in self.running]
        self.running.clear()
        await self._resources.__aexit__(exc_type, exc, traceback)
        for output in outputs:
            assert_nothing_went_wrong(output)

    def url(self) -> str:
        """Of any of them; raises OSError where there is none."""
        if not self.running:
            raise ConnectionRefusedError("no process of the service is running")
        process = self._choose.choice(self.running)
        proxy = self.proxies.get(process)
        return process.url if proxy is None else f"ws://127.0.0.1:{proxy.port}/ws"

    async def add(self) -> ServiceProcess:
        """Start one more, and return once it is ready."""
        process = ServiceProcess(self._redis_url, settings=SETTINGS)
        await self._resources.enter_async_context(process)
        if self._proxied:
            proxy = TcpProxy(process.port)
            self.proxies[process] = await self._resources.enter_async_context(proxy)
        self.running.append(process)
        return process

    async def kill(self, process: ServiceProcess) -> None:
        """SIGKILL to all of it."""
        self._remove(process)
        process.signal_all(signal.SIGKILL)
        await process.wait()
        assert_nothing_went_wrong(process.output())

    async def terminate(self, process: ServiceProcess) -> None:
        """SIGTERM; returns once it has ended, with status 0."""
        self._remove(process)
        assert await process.terminate() == 0
        assert_nothing_went_wrong(process.output())

    def _remove(self, process: ServiceProcess) -> None:
        self.running.remove(process)
        self.proxies.pop(process, None)
