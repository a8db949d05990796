"""A worker's side of the channel."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Final

from services.websocket_service.protocols import MetricsUnavailableError
from services.websocket_service.workers.aggregation import parsed, value_of
from services.websocket_service.workers.channel import Channel, Kind

REPORT_INTERVAL_S: Final = 1.0
"""So much of what a worker has counted is lost at most when it is killed."""
PAGE_TIMEOUT_S: Final = 3.0


class SupervisorLink:
    """Tells the supervisor how this worker is, and asks it about all of them.

    A `MetricsProtocol`.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._page: asyncio.Future[bytes] | None = None
        self._report: Callable[[], bytes] | None = None

    @contextlib.asynccontextmanager
    async def open(self, stop: asyncio.Event) -> AsyncIterator[None]:
        """Listen to the supervisor while inside.

        `stop` gets set when the supervisor is gone: nobody would ever stop this process.
        """
        listening = asyncio.create_task(self._listen())
        listening.add_done_callback(lambda _: stop.set())
        try:
            yield
        finally:
            await self._channel.close()
            # The closed channel ends it.
            await listening

    @contextlib.asynccontextmanager
    async def serving(self, report: Callable[[], bytes]) -> AsyncIterator[None]:
        """Say that this worker serves, and while inside what `report` gives: its metrics."""
        self._report = report
        self._channel.send(Kind.READY)
        reporting = asyncio.create_task(self._report_regularly())
        try:
            yield
        finally:
            reporting.cancel()
            self._send_report()
            self._report = None

    def failed(self, reason: str) -> None:
        """Say why this worker can't start."""
        self._channel.send(Kind.FAILED, reason.encode())

    async def page(self) -> bytes:
        """Everybody's metrics. Raises MetricsUnavailableError."""
        if self._page is None:
            self._page = asyncio.get_running_loop().create_future()
            self._channel.send(Kind.PAGE)
        try:
            # Whoever else asks meanwhile gets the same answer.
            async with asyncio.timeout(PAGE_TIMEOUT_S):
                return await asyncio.shield(self._page)
        except TimeoutError:
            raise MetricsUnavailableError("the supervisor does not answer") from None

    async def connections(self) -> int:
        """Those of all workers. Raises MetricsUnavailableError."""
        return int(value_of(parsed(await self.page()), "websocket_connections"))

    async def _listen(self) -> None:
        while message := await self._channel.receive():
            if message.kind is Kind.REPORT:
                self._send_report()
            elif self._page is not None:
                self._page.set_result(message.body)
                self._page = None

    def _send_report(self) -> None:
        if self._report is not None:
            self._channel.send(Kind.REPORT, self._report())

    async def _report_regularly(self) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                self._send_report()
                # A supervisor that hangs is not to fill this process's memory.
                await self._channel.drain()
                await asyncio.sleep(REPORT_INTERVAL_S)
