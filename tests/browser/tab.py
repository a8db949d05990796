"""A page in a real browser, and what its script reports.

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

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
BROWSER_TIMEOUT_S = 60

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None and "CI" not in os.environ, reason="no Chromium on this machine"
)

PAGE = """<!doctype html><title>tab</title><script>
const report = (seen) => fetch("/seen", {method: "POST", body: JSON.stringify(seen)});
%s
</script>"""


class Tab:
    """A page in a headless Chromium, and what its script has reported so far."""

    def __init__(self, page: str) -> None:
        self._page = page
        self._reports: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def until(self, condition: str) -> dict[str, Any]:
        """The first report in which the field is set."""
        while not (report := await self._reports.get())[condition]:
            pass
        return report

    async def until_it_is(self, field: str, value: Any) -> None:
        """Return with the first report in which the field has this value."""
        while (await self._reports.get())[field] != value:
            pass

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
async def open_tab(profile: Path, script: str) -> AsyncIterator[Tab]:
    """A browser whose page runs `script`, which has `report(seen)` to say what it sees."""
    assert CHROMIUM is not None, "CI has to install Chromium"
    tab = Tab(PAGE % script)
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
