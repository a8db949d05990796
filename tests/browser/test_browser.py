"""A real browser's view: what its WebSocket shows to a page's script."""

import asyncio
import json
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from redis.asyncio import Redis

from huleedu_service_libs.redis_server import RedisServer
from tests.browser.tab import Tab, needs_chromium, open_tab
from tests.service_process import ServiceProcess, token

pytestmark = needs_chromium

SCRIPT = """
const seen = {messages: [], protocol: null, opened: false, code: null, reason: null};
const socket = new WebSocket(...%s);
socket.onopen = () => { seen.opened = true; seen.protocol = socket.protocol; report(seen); };
socket.onmessage = (event) => { seen.messages.push(event.data); report(seen); };
socket.onclose = (event) => { seen.code = event.code; seen.reason = event.reason; report(seen); };
"""


def open_socket(profile: Path, url: str, protocols: list[str]) -> AbstractAsyncContextManager[Tab]:
    """A browser whose page does `new WebSocket(url, protocols)`."""
    return open_tab(profile, SCRIPT % json.dumps([url, protocols]))


async def test_notification_reaches_the_tab(
    service: ServiceProcess, redis: Redis, tmp_path: Path
) -> None:
    """A page that puts its token into a subprotocol sees its notification."""
    bearer = "bearer." + token()
    async with open_socket(tmp_path, service.url, [bearer]) as tab:
        assert (await tab.until("opened"))["protocol"] == bearer
        text = json.dumps({"event": "batch_results_ready", "data": {"batch_id": "blå ✓"}})
        assert await redis.publish("ws:teacher-1", text) == 1
        assert (await tab.until("messages"))["messages"] == [text]


async def test_v1_dialect_is_selected(service: ServiceProcess, tmp_path: Path) -> None:
    """A page that asks for the v1 dialect gets it, and a welcome first."""
    protocols = ["huleedu.notify.v1", "bearer." + token()]
    async with open_socket(tmp_path, service.url, protocols) as tab:
        seen = await tab.until("messages")
        assert seen["protocol"] == "huleedu.notify.v1"
        assert json.loads(seen["messages"][0])["type"] == "welcome"


async def test_refusal_is_told_from_a_network_fault(
    service: ServiceProcess, tmp_path: Path
) -> None:
    """A page with a bad token sees 1008 and why, not a bare 1006."""
    async with open_socket(tmp_path, service.url, ["bearer.no-token"]) as tab:
        seen = await tab.until("code")
        assert seen["code"] == 1008
        assert json.loads(seen["reason"])["error_code"] == "AUTHENTICATION_ERROR"


async def test_restart_is_announced(service: ServiceProcess, tmp_path: Path) -> None:
    """A page sees 1012 and when to come back as the server stops."""
    async with open_socket(tmp_path, f"{service.url}?token={token()}", []) as tab:
        await tab.until("opened")
        status = asyncio.create_task(service.terminate())
        seen = await tab.until("code")
        assert seen["code"] == 1012
        assert json.loads(seen["reason"])["retry_after_ms"] > 0
        assert await status == 0


async def test_foreign_origin_is_refused(redis_server: RedisServer, tmp_path: Path) -> None:
    """A page of another site can't use its visitor's token."""
    settings = {"CORS_ORIGINS": '["https://app.example.org"]'}
    async with (
        ServiceProcess(redis_server.url, settings=settings) as service,
        open_socket(tmp_path, f"{service.url}?token={token()}", []) as tab,
    ):
        seen = await tab.until("code")
        assert seen["code"] == 1008
        assert json.loads(seen["reason"])["error_code"] == "AUTHORIZATION_ERROR"
