"""The JavaScript of the migration guide, in a real browser."""

import json
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from redis.asyncio import Redis

from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_server import RedisServer
from huleedu_service_libs.testing.polling import until
from huleedu_service_libs.testing.tcp_proxy import TcpProxy
from tests.browser.tab import Tab, needs_chromium, open_tab
from tests.contract.migration_page import code
from tests.service_process import ServiceProcess, token

pytestmark = needs_chromium

PLAIN = """
const seen = {shown: [], ended: null};
listen(...%s, (message) => { seen.shown.push(message); report(seen); },
  (code, reason) => { seen.ended = [code, JSON.parse(reason).error_code]; report(seen); });
"""
TICKET = """
const seen = {opened: false};
ticketUrl(...%s).then((url) => {
  const socket = new WebSocket(url);
  socket.onopen = () => { seen.opened = true; report(seen); };
});
"""
V1 = """
const seen = {numbers: [], resyncs: [], ended: null, tokens: 0};
const [url, tokens] = %s;
listen(url, {
  fetchToken: async () => tokens[Math.min(seen.tokens++, tokens.length - 1)],
  onNotification: ({data}) => { seen.numbers.push(data.number); report(seen); },
  onResync: (reason) => { seen.resyncs.push(reason); report(seen); },
  onEnd: (code, reason) => { seen.ended = [code, reason.error_code]; report(seen); },
});
"""


@pytest.fixture
async def publisher(redis_server: RedisServer) -> AsyncIterator[RedisClient]:
    """What a backend service publishes with."""
    async with RedisClient(client_id="result_service", redis_url=redis_server.url) as client:
        yield client


def open_v1_tab(profile: Path, port: int, *tokens: str) -> AbstractAsyncContextManager[Tab]:
    """A page with the guide's v1 client, which gets these tokens, the last one again and again."""
    arguments = json.dumps([f"ws://127.0.0.1:{port}/ws", tokens or [token()]])
    return open_tab(profile, code("js", "v1") + V1 % arguments)


async def publish(publisher: RedisClient, number: int) -> None:
    await publisher.publish_user_notification("teacher-1", "counted", {"number": number})


async def until_accepted(front: TcpProxy, connections: int) -> None:
    async def are_accepted() -> bool:
        return front.accepted >= connections

    await until(are_accepted)


async def test_plain_page(service: ServiceProcess, redis: Redis, tmp_path: Path) -> None:
    """With the one line changed a page shows what is published, and is told of a restart."""
    script = code("js", "plain") + PLAIN % json.dumps([service.url, token()])
    async with open_tab(tmp_path, script) as tab:
        published = {"event": "batch_results_ready", "data": {"batch_id": "batch-1"}}

        async def is_heard() -> bool:
            return bool(await redis.publish("ws:teacher-1", json.dumps(published)))

        await until(is_heard)
        await tab.until_it_is("shown", [published])
        assert await service.terminate() == 0
        await tab.until_it_is("ended", [1012, "SERVICE_UNAVAILABLE"])


async def test_page_with_a_ticket(service: ServiceProcess, tmp_path: Path) -> None:
    """A page that fetches a ticket connects without its token in the URL."""
    script = code("js", "ticket") + TICKET % json.dumps([service.url, token()])
    async with open_tab(tmp_path, script) as tab:
        await tab.until("opened")


async def test_v1_page_resumes(
    service: ServiceProcess, publisher: RedisClient, tmp_path: Path
) -> None:
    """The guide's page gets each notification once, also those that came while it was away."""
    async with TcpProxy(service.port) as front, open_v1_tab(tmp_path, front.port) as tab:
        await tab.until_it_is("resyncs", ["not_resumed"])
        await publish(publisher, 1)
        await tab.until_it_is("numbers", [1])
        await front.refuse()
        await front.cut()
        await publish(publisher, 2)
        await front.accept()
        await tab.until_it_is("numbers", [1, 2])
        await publish(publisher, 3)
        assert (await tab.until("numbers"))["numbers"] == [1, 2, 3]


async def test_v1_page_hears_of_a_loss(
    service: ServiceProcess, publisher: RedisClient, redis: Redis, tmp_path: Path
) -> None:
    """Where Redis has lost its data the page is told to fetch its state, and goes on."""
    async with TcpProxy(service.port) as front, open_v1_tab(tmp_path, front.port) as tab:
        await tab.until_it_is("resyncs", ["not_resumed"])
        await publish(publisher, 1)
        await tab.until_it_is("numbers", [1])
        await redis.flushall()
        await front.cut()
        await tab.until_it_is("resyncs", ["not_resumed", "history_lost"])
        await publish(publisher, 2)
        await tab.until_it_is("numbers", [1, 2])


async def test_v1_page_leaves_a_silent_connection(
    redis_server: RedisServer, publisher: RedisClient, tmp_path: Path
) -> None:
    """A page whose network has died without a word connects anew, and misses nothing."""
    # Of the heartbeats, too.
    settings = {"WEBSOCKET_PING_INTERVAL": "0.5"}
    async with (
        ServiceProcess(redis_server.url, settings=settings) as service,
        TcpProxy(service.port) as front,
        open_v1_tab(tmp_path, front.port) as tab,
    ):
        await tab.until_it_is("resyncs", ["not_resumed"])
        await publish(publisher, 1)
        await tab.until_it_is("numbers", [1])
        front.hold()
        await publish(publisher, 2)
        await until_accepted(front, 2)
        front.flow()
        await tab.until_it_is("numbers", [1, 2])


async def test_v1_page_renews_its_token(
    service: ServiceProcess, publisher: RedisClient, tmp_path: Path
) -> None:
    """A token that is about to expire is replaced in place: the connection stays."""

    async def is_renewed() -> bool:
        metrics = await service.metrics()
        return metrics.get('websocket_token_renewals_total{result="refreshed"}') == 1

    tokens = [token(exp=int(time.time()) + 8), token()]
    async with (
        TcpProxy(service.port) as front,
        open_v1_tab(tmp_path, front.port, *tokens) as tab,
    ):
        await until(is_renewed)
        await publish(publisher, 1)
        await tab.until_it_is("numbers", [1])
        assert front.accepted == 1


async def test_v1_page_fetches_a_new_token(service: ServiceProcess, tmp_path: Path) -> None:
    """A token that is refused is replaced by another, and then the page is in."""
    async with open_v1_tab(tmp_path, service.port, token(exp=1), token()) as tab:
        seen = await tab.until("resyncs")
        assert (seen["tokens"], seen["ended"]) == (2, None)


async def test_v1_page_gives_up_where_it_has_to(redis_server: RedisServer, tmp_path: Path) -> None:
    """With too many tabs open the page does not fight the others for a place."""
    settings = {"WEBSOCKET_MAX_CONNECTIONS_PER_USER": "1"}
    async with (
        ServiceProcess(redis_server.url, settings=settings) as service,
        service.connect(),
        open_v1_tab(tmp_path, service.port) as tab,
    ):
        await tab.until_it_is("ended", [4000, "QUOTA_EXCEEDED"])
