"""The network breaks under traffic: tabs miss nothing, whichever side of the service it is on."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest

from huleedu_service_libs.redis_server import RedisServer
from huleedu_service_libs.testing.tcp_proxy import TcpProxy, is_message
from tests.fault.peers import assert_nothing_went_wrong, until
from tests.fault.traffic import SETTINGS, Crowd, Traffic, traffic
from tests.service_process import ServiceProcess

SILENCES = {
    "both ways": {},
    "towards the server": {"to_client": False},
    "towards the client": {"to_server": False},
}


@asynccontextmanager
async def served(
    redis_server: RedisServer, through: TcpProxy
) -> AsyncIterator[tuple[ServiceProcess, Traffic]]:
    """The service behind the proxy, publishers past it; what it logs is in order afterwards."""
    async with through, ServiceProcess(through.url, settings=SETTINGS) as service:
        async with traffic(redis_server.url, lambda: service.url) as going:
            yield service, going
        assert_nothing_went_wrong(service.output())


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
async def test_connections_to_redis_cut(redis_server: RedisServer, reset: bool) -> None:
    """Tabs do not notice that all of the service's connections to Redis are cut, over and over."""
    proxy = TcpProxy(redis_server.port)
    async with served(redis_server, proxy) as (service, going):
        for n in range(1, 6):
            await proxy.cut(reset=reset)
            await going.is_acknowledged(3)
            await until(
                partial(is_at_least, service, "websocket_redis_connections_opened_total", 1 + n)
            )
        figures = await going.finish()
        assert figures.nobody_noticed, str(figures)


@pytest.mark.parametrize("silence", SILENCES)
async def test_silence_between_service_and_redis(redis_server: RedisServer, silence: str) -> None:
    """What Redis takes and the service does not hear is told as soon as it hears again."""
    proxy = TcpProxy(redis_server.port)
    async with served(redis_server, proxy) as (service, going):
        proxy.hold(**SILENCES[silence])
        await service.wait_for_status("/readyz", 503)
        await going.is_acknowledged(20)
        # Nothing is published any more that would tell of what was missed.
        await going.end()
        proxy.flow()
        figures = await going.audit()
        assert not figures.uncertain, str(figures)
        assert figures.nothing_missing, str(figures)


async def test_deaf_subscription(redis_server: RedisServer) -> None:
    """A connection that answers but brings no messages is found out, and nothing is missed."""
    deaf = False
    proxy = TcpProxy(redis_server.port, keep=lambda reply: not (deaf and is_message(reply)))
    async with served(redis_server, proxy) as (service, going):
        deaf = True
        await service.wait_for_status("/readyz", 503)
        await until(partial(is_at_least, service, "websocket_redis_connections_opened_total", 2))
        await going.is_acknowledged(20)
        await going.end()
        deaf = False
        figures = await going.audit()
        assert figures.nothing_missing, str(figures)


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
async def test_connections_of_tabs_cut(redis_server: RedisServer, reset: bool) -> None:
    """Tabs whose connections are cut, again and again, come back and miss nothing."""
    async with (
        ServiceProcess(redis_server.url, settings=SETTINGS) as service,
        TcpProxy(service.port) as proxy,
        traffic(redis_server.url, lambda: url_through(proxy)) as going,
    ):
        for _ in range(5):
            await proxy.cut(reset=reset)
            await going.flows()
        figures = await going.finish()
        assert figures.closes[1006] >= 5 * len(going.ledger.tabs)
        assert figures.nothing_missing, str(figures)
        assert_nothing_went_wrong(service.output())


@pytest.mark.parametrize("silence", SILENCES)
async def test_silence_between_tabs_and_service(redis_server: RedisServer, silence: str) -> None:
    """Tabs whose network has swallowed everything for a while come back and miss nothing."""
    async with (
        ServiceProcess(redis_server.url, settings=SETTINGS) as service,
        TcpProxy(service.port) as proxy,
        traffic(redis_server.url, lambda: url_through(proxy), crowd=Crowd(patience_s=1)) as going,
    ):
        proxy.hold(**SILENCES[silence])
        await going.ledger.until(lambda: not any(tab.is_open for tab in going.ledger.tabs))
        await going.is_acknowledged(20)
        await going.end()
        proxy.flow()
        figures = await going.audit()
        assert figures.nothing_missing, str(figures)
        assert_nothing_went_wrong(service.output())


def url_through(proxy: TcpProxy) -> str:
    """Of the WebSocket behind the proxy."""
    return f"ws://127.0.0.1:{proxy.port}/ws"


async def is_at_least(service: ServiceProcess, metric: str, value: float) -> bool:
    """Whether one of the service's counts has come so far."""
    return (await service.metrics())[metric] >= value
