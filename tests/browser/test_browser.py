"""A real browser's view: what its WebSocket shows to a page's script.

Chromium comes from the system (`apt-get install chromium`). Where there is none these tests are
left out, except in CI.
"""

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from huleedu_service_libs.redis_server import RedisServer
from tests.service_process import ServiceProcess, token

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
BROWSER_TIMEOUT_S = 60

pytestmark = pytest.mark.skipif(
    CHROMIUM is None and "CI" not in os.environ, reason="no Chromium on this machine"
)

PAGE = """<!doctype html><title>tab</title><script>
const report = (seen) => fetch("/seen", {method: "POST", body: JSON.stringify(seen)});
const seen = {messages: [], protocol: null, opened: false, code: null, reason: null};
const socket = new WebSocket(...%s);
socket.onopen = () => { seen.opened = true; seen.protocol = socket.protocol; report(seen); };
socket.onmessage = (event) => { seen.messages.push(event.data); report(seen); };
socket.onclose = (event) => { seen.code = event.code; seen.reason = event.reason; report(seen); };
</script>"""


class Tab:
    """A page in a headless Chromium, and what its socket has seen so far."""

    def __init__(self, page: str) -> None:
        self._page = page
        self._reports: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def until(self, condition: str) -> dict[str, Any]:
        """The first report in which the field is set."""
        while not (report := await self._reports.get())[condition]:
            pass
        return report

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve the page, and take its reports."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        body = b""
        if head.startswith("GET / "):
            body = self._page.encode()
        elif head.startswith("POST"):
            length = next(
                int(line.partition(":")[2])
                for line in head.splitlines()
                if line.lower().startswith("content-length:")
            )
            self._reports.put_nowait(json.loads(await reader.readexactly(length)))
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        await writer.drain()
        writer.close()


@asynccontextmanager
async def open_tab(profile: Path, url: str, protocols: list[str]) -> AsyncIterator[Tab]:
    """A browser whose page does `new WebSocket(url, protocols)`."""
    assert CHROMIUM is not None, "CI has to install Chromium"
    tab = Tab(PAGE % json.dumps([url, protocols]))
    async with (
        asyncio.timeout(BROWSER_TIMEOUT_S),
        await asyncio.start_server(tab.answer, "127.0.0.1", 0) as server,
    ):
        port = server.sockets[0].getsockname()[1]
        browser = await asyncio.create_subprocess_exec(
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
            f"--user-data-dir={profile}",
            f"http://127.0.0.1:{port}/",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            yield tab
        finally:
            browser.kill()
            await browser.wait()


async def test_notification_reaches_the_tab(
    service: ServiceProcess, redis: Redis, tmp_path: Path
) -> None:
    """A page that puts its token into a subprotocol sees its notification."""
    bearer = "bearer." + token()
    async with open_tab(tmp_path, service.url, [bearer]) as tab:
        assert (await tab.until("opened"))["protocol"] == bearer
        text = json.dumps({"event": "batch_results_ready", "data": {"batch_id": "blå ✓"}})
        assert await redis.publish("ws:teacher-1", text) == 1
        assert (await tab.until("messages"))["messages"] == [text]


async def test_v1_dialect_is_selected(service: ServiceProcess, tmp_path: Path) -> None:
    """A page that asks for the v1 dialect gets it, and a welcome first."""
    protocols = ["huleedu.notify.v1", "bearer." + token()]
    async with open_tab(tmp_path, service.url, protocols) as tab:
        seen = await tab.until("messages")
        assert seen["protocol"] == "huleedu.notify.v1"
        assert json.loads(seen["messages"][0])["type"] == "welcome"


async def test_refusal_is_told_from_a_network_fault(
    service: ServiceProcess, tmp_path: Path
) -> None:
    """A page with a bad token sees 1008 and why, not a bare 1006."""
    async with open_tab(tmp_path, service.url, ["bearer.no-token"]) as tab:
        seen = await tab.until("code")
        assert seen["code"] == 1008
        assert json.loads(seen["reason"])["error_code"] == "AUTHENTICATION_ERROR"


async def test_restart_is_announced(service: ServiceProcess, tmp_path: Path) -> None:
    """A page sees 1012 and when to come back as the server stops."""
    async with open_tab(tmp_path, f"{service.url}?token={token()}", []) as tab:
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
        open_tab(tmp_path, f"{service.url}?token={token()}", []) as tab,
    ):
        seen = await tab.until("code")
        assert seen["code"] == 1008
        assert json.loads(seen["reason"])["error_code"] == "AUTHORIZATION_ERROR"
