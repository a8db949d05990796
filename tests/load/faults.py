"""What a soak can break: each fault breaks something, lasts, and is mended when it returns."""

import asyncio
import signal
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from enum import Flag, auto
from random import Random
from typing import Final

from huleedu_service_libs.testing.admin import Admin
from huleedu_service_libs.testing.tcp_proxy import TcpProxy
from tests.fault.endpoints import Endpoints
from tests.fault.traffic import Traffic

# In which direction a proxy stays silent.
DIRECTIONS: Final[Sequence[Mapping[str, bool]]] = (
    {},
    {"to_server": False},
    {"to_client": False},
)
BURST_BYTES: Final = 60_000


class Side(Flag):
    """Where something breaks. Two faults at once have no side in common."""

    REDIS = auto()
    LINK = auto()
    """Between the service and Redis."""
    SERVICE = auto()
    TABS = auto()


Cause = Callable[[Random], Coroutine[None, None, None]]
"""Breaks something and mends it; takes the source of its random choices."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to break something."""

    name: str
    side: Side
    cause: Cause


async def last_for(seconds: float) -> None:
    """Let a fault go on."""
    await asyncio.sleep(seconds)


async def interrupt(proxies: Sequence[TcpProxy], choose: Random) -> None:
    """Cut everything, or swallow it for a while."""
    if choose.random() < 0.5:
        reset = choose.random() < 0.5
        for proxy in proxies:
            await proxy.cut(reset=reset)
        return
    direction = choose.choice(DIRECTIONS)
    for proxy in proxies:
        proxy.hold(**direction)
    try:
        await last_for(choose.uniform(0.1, 4))
    finally:
        for proxy in proxies:
            proxy.flow()


class ServiceFaults:
    """The service's own, which are the same with every Redis."""

    def __init__(
        self, endpoints: Endpoints, going: Traffic, masters: Callable[[], Sequence[Admin]]
    ) -> None:
        self._endpoints = endpoints
        self._going = going
        self._masters = masters
        self.all = (
            Fault("service killed", Side.SERVICE, self._kill),
            Fault("service told to end", Side.SERVICE, self._terminate),
            Fault("service stopped for a while", Side.SERVICE, self._stop),
            Fault("tabs cut off", Side.TABS, self._cut_tabs),
            Fault("subscription connections killed", Side.REDIS, self._kill_subscriptions),
            Fault("output buffers overflow", Side.REDIS | Side.SERVICE, self._overflow),
            Fault("scripts flushed", Side.REDIS, self._flush_scripts),
        )

    async def _kill(self, choose: Random) -> None:
        await self._endpoints.kill(choose.choice(self._endpoints.running))
        await last_for(choose.uniform(0, 1))
        await self._endpoints.add()

    async def _terminate(self, choose: Random) -> None:
        await self._endpoints.terminate(choose.choice(self._endpoints.running))
        await self._endpoints.add()

    async def _stop(self, choose: Random) -> None:
        process = choose.choice(self._endpoints.running)
        process.signal_all(signal.SIGSTOP)
        await last_for(choose.uniform(0.1, 3))
        process.signal_all(signal.SIGCONT)

    async def _cut_tabs(self, choose: Random) -> None:
        await interrupt(tuple(self._endpoints.proxies.values()), choose)

    async def _kill_subscriptions(self, choose: Random) -> None:
        for _ in range(choose.randint(1, 5)):
            for master in self._masters():
                await master.client_kill_filter(_type="pubsub")
            await last_for(choose.uniform(0, 0.5))

    async def _overflow(self, choose: Random) -> None:
        process = choose.choice(self._endpoints.running)
        masters = self._masters()
        for master in masters:
            await master.config_set("client-output-buffer-limit", "pubsub 100kb 0 0")
        process.signal_all(signal.SIGSTOP)
        await self._going.burst(choose.randint(10, 100), padding_bytes=BURST_BYTES)
        process.signal_all(signal.SIGCONT)
        for master in masters:
            await master.config_set("client-output-buffer-limit", "pubsub 32mb 8mb 60")

    async def _flush_scripts(self, choose: Random) -> None:
        for _ in range(choose.randint(1, 5)):
            for master in self._masters():
                await master.script_flush()
            await last_for(choose.uniform(0, 0.2))
