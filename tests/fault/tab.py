"""A browser tab: a real WebSocket client that comes back, and notes all that it is told."""

import asyncio
import json
from collections.abc import Callable
from random import Random
from typing import Any, Final, NoReturn
from urllib.parse import quote

import websockets
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, WebSocketException

from tests.fault.ledger import Ledger, TabHistory
from tests.fault.peers import V1
from tests.service_process import token

FIRST_DELAY_S: Final = 0.05
MAX_DELAY_S: Final = 1.0
CLOSE_TIMEOUT_S: Final = 0.5
NO_CLOSE_FRAME: Final = 1006

Locate = Callable[[], str]
"""The URL to connect to now; raises OSError where there is none."""


class Tab:
    """Follows the protocol page; runs until it is cancelled.

    A connection on which a ping, or the handshake, is unanswered for `patience_s` is given up.
    """

    def __init__(
        self,
        ledger: Ledger,
        history: TabHistory,
        locate: Locate,
        choose: Random,
        *,
        patience_s: float,
    ) -> None:
        self._ledger = ledger
        self._history = history
        self._locate = locate
        self._choose = choose
        self._patience_s = patience_s
        self._cursor: str | None = None
        self._failures = 0

    async def run(self) -> NoReturn:
        """One connection after the other."""
        while True:
            retry_after_s = None
            try:
                async with self._connection() as connection:
                    retry_after_s = await self._attend(connection)
            except (OSError, WebSocketException):
                pass  # it was not let in
            if retry_after_s is None:
                ceiling_s = min(MAX_DELAY_S, FIRST_DELAY_S * 2 ** min(self._failures, 10))
                self._failures += 1
                retry_after_s = ceiling_s * self._choose.uniform(0.5, 1)
            await asyncio.sleep(retry_after_s)

    def _connection(self) -> websockets.connect:
        url = self._locate()
        if self._cursor is not None:
            url += f"?cursor={quote(self._cursor)}"
        return websockets.connect(
            url,
            additional_headers={"Authorization": f"Bearer {token(self._history.user)}"},
            subprotocols=None if self._history.is_plain else [V1],
            compression=None,
            proxy=None,
            open_timeout=self._patience_s,
            ping_interval=self._patience_s / 2,
            ping_timeout=self._patience_s,
            close_timeout=CLOSE_TIMEOUT_S,
        )

    async def _attend(self, connection: ClientConnection) -> float | None:
        """Handle what comes up to the end; the seconds that the server asks to wait."""
        if self._history.is_plain:
            self._ledger.opened(self._history)
        try:
            while True:
                message = json.loads(await connection.recv())
                self._failures = 0
                for frame in message if isinstance(message, list) else [message]:
                    self._handle(frame)
        except ConnectionClosed as closed:
            code = NO_CLOSE_FRAME if closed.rcvd is None else closed.rcvd.code
            self._ledger.closed(self._history, code)
            return _retry_after_s(closed)

    def _handle(self, frame: dict[str, Any]) -> None:
        kind = "notification" if self._history.is_plain else frame["type"]
        match kind:
            case "welcome":
                cursor, resumed = frame["cursor"], frame["resumed"]
                self._ledger.welcomed(self._history, self._cursor, cursor, resumed=resumed)
                # Where it could not be resumed, the resync says from where to go on.
                if resumed is None:
                    self._cursor = cursor
            case "resync":
                self._ledger.resynced(self._history, frame["reason"], frame["cursor"])
                self._cursor = frame["cursor"]
            case "notification":
                self._ledger.received(
                    self._history, frame["id"], frame["prev"], frame["data"]["key"]
                )
                self._cursor = frame["id"]


def _retry_after_s(closed: ConnectionClosed) -> float | None:
    if closed.rcvd is None or not closed.rcvd.reason:
        return None
    retry_after_ms: float | None = json.loads(closed.rcvd.reason).get("retry_after_ms")
    return None if retry_after_ms is None else retry_after_ms / 1000
