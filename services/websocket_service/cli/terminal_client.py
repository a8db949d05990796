"""The client behind `tail`: connects, receives, and comes back when the connection breaks."""

import asyncio
import contextlib
import json
import os
import ssl
import stat
import sys
import time
from collections.abc import Iterator
from http import HTTPStatus
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidStatus,
    InvalidURI,
    WebSocketException,
)
from websockets.typing import Subprotocol

from services.websocket_service.cli.closing import Closing
from services.websocket_service.cli.endpoint import Endpoint, Locate
from services.websocket_service.cli.output import CliError, say
from services.websocket_service.cli.parsing import Frame, parse_frames
from services.websocket_service.cli.position import Position
from services.websocket_service.cli.printing import NOTIFICATION, FramePrinter, ReaderGoneError
from services.websocket_service.retry_delays import RetryDelays

_SUBPROTOCOL = "huleedu.notify.v1"
_LOOPBACK_HOSTS = frozenset({"127.0.0.1", "::1", "localhost"})
_OPEN_TIMEOUT_S = 10.0
_FIRST_DELAY_S = 0.5
_CLOSE_TIMEOUT_S = 1.0
# A connection that lived this long was a success: the next failure is a new one.
_STABLE_AFTER_S = 10.0
# One text frame holds at most what the service's outbox does: 32 MiB by default, and commas.
_MAX_MESSAGE_BYTES = 64 * 1024 * 1024
_ABNORMAL_CLOSURE = 1006
_TOKEN_EXPIRING = "token_expiring"  # noqa: S105 - a frame's type
_FIRST_SERVER_ERROR = 500
# What OpenSSL calls an answer that is no TLS; which of them depends on its version.
_NO_TLS_REASONS = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"})


async def run_tail(
    locate: Locate, position: Position, printer: FramePrinter, stop: asyncio.Event
) -> None:
    """Print frames until `stop` is set, the printer is done or nobody reads stdout any more.

    Raises CliError if the first attempt fails or the service refuses for good.
    """
    with _reader_watched(stop):
        tailing = asyncio.create_task(_Tail(locate, position, printer).run())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({tailing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not tailing.done():
            # Leaves through the connection's own end, which sends a close frame.
            tailing.cancel()
        try:
            await tailing
        except ReaderGoneError:
            _discard_stdout()
        except asyncio.CancelledError:
            pass


class _Tail:
    def __init__(self, locate: Locate, position: Position, printer: FramePrinter) -> None:
        self._locate = locate
        self._position = position
        self._printer = printer
        self._retry_delays = RetryDelays(first_delay_s=_FIRST_DELAY_S)
        self._was_connected = False
        self._is_connected = False
        self._is_admitted = False
        self._error: Frame = {}

    async def run(self) -> None:
        """One connection after the other."""
        while True:
            endpoint = self._locate()
            if endpoint is None:
                await self._wait("no running `websocket-service dev` found: looking again")
                continue
            self._is_connected = self._is_admitted = False
            self._error = {}
            opened_at = time.monotonic()
            try:
                async with _connection(endpoint, self._position.cursor) as connection:
                    await self._receive(connection, endpoint)
                    return
            except ConnectionClosed as closed:
                closing = _closing(closed, self._error)
            except (OSError, WebSocketException) as error:
                closing = self._failed_attempt(error, endpoint)
            if closing.is_normal:
                say("the service has closed the connection")
                return
            # A fresh token that was refused at once would be refused again.
            goes_on = self._is_admitted and endpoint.is_renewable and closing.needs_token
            if closing.ends_tail and not goes_on:
                raise CliError(f"the service refused: {closing.description}: {closing.advice}")
            if time.monotonic() - opened_at > _STABLE_AFTER_S:
                self._retry_delays.reset()
            happened = "connection lost" if self._is_connected else "not accepted"
            await self._wait(
                f"{happened} ({closing.description}): reconnecting", closing.retry_after_s
            )

    async def _wait(self, why: str, asked_for_s: float | None = None) -> None:
        delay_s = self._retry_delays.next_delay_s() if asked_for_s is None else asked_for_s
        say(f"{why} in {delay_s:.1f} s")
        await asyncio.sleep(delay_s)

    async def _receive(self, connection: ClientConnection, endpoint: Endpoint) -> None:
        speaks_v1 = connection.subprotocol == _SUBPROTOCOL
        if not speaks_v1:
            self._connected(endpoint, {})
        while True:
            for frame in parse_frames(await connection.recv()):
                # A plain payload may have a `type` of its own.
                kind = frame.get("type", NOTIFICATION) if speaks_v1 else NOTIFICATION
                if kind == NOTIFICATION:
                    self._take(frame)
                else:
                    self._heed(kind, frame, endpoint)
                if kind == _TOKEN_EXPIRING and endpoint.is_renewable:
                    await self._renew(connection)
                if self._printer.is_done:
                    return

    async def _renew(self, connection: ClientConnection) -> None:
        endpoint = self._locate()
        if endpoint is not None:
            frame = {"type": "authenticate", "token": endpoint.credential}
            await connection.send(json.dumps(frame))

    def _take(self, notification: Frame) -> None:
        self._is_admitted = True
        if not self._position.is_repeated(notification):
            self._printer.show(notification)
            self._position.advance(notification)

    def _heed(self, kind: object, frame: Frame, endpoint: Endpoint) -> None:
        if kind == "welcome":
            self._is_admitted = True
            self._connected(endpoint, frame)
        elif kind == "resync":
            say(self._position.resync(frame))
        elif kind == "error" and isinstance(frame.get("error"), dict):
            self._error = frame["error"]
        self._printer.show(frame, kind)

    def _connected(self, endpoint: Endpoint, welcome: Frame) -> None:
        again = " again" if self._was_connected else ""
        as_whom = f" as {welcome['user_id']}" if "user_id" in welcome else ""
        self._was_connected = self._is_connected = True
        say(f"connected{again} to {endpoint.url}{as_whom} (Ctrl-C ends)")
        told = self._position.welcome(welcome)
        if told is not None:
            say(told)

    def _failed_attempt(self, error: OSError | WebSocketException, endpoint: Endpoint) -> Closing:
        """The end of a connection that never was; raises CliError where trying on is no use."""
        final = isinstance(error, InvalidStatus) and (
            error.response.status_code < _FIRST_SERVER_ERROR
        )
        if self._was_connected and not final:
            return Closing(_ABNORMAL_CLOSURE, _why(error))
        raise CliError(f"can't connect to {endpoint.url} ({_why(error)}): {_remedy(error)}")


def _connection(endpoint: Endpoint, cursor: str | None) -> connect:
    try:
        return connect(
            endpoint.url_after(cursor),
            subprotocols=[Subprotocol(_SUBPROTOCOL), Subprotocol(f"bearer.{endpoint.credential}")],
            # Costs the service 90 KiB a connection.
            compression=None,
            # A proxy from the environment can't lead back to this machine.
            proxy=None if urlsplit(endpoint.url).hostname in _LOOPBACK_HOSTS else True,
            open_timeout=_OPEN_TIMEOUT_S,
            close_timeout=_CLOSE_TIMEOUT_S,
            max_size=_MAX_MESSAGE_BYTES,
        )
    except InvalidURI as error:
        raise CliError(f"--url is no WebSocket URL: {error}") from None


def _closing(closed: ConnectionClosed, error: Frame) -> Closing:
    if closed.rcvd is not None:
        return Closing(closed.rcvd.code, closed.rcvd.reason, error)
    if closed.sent is not None:
        return Closing(closed.sent.code, closed.sent.reason)
    return Closing(_ABNORMAL_CLOSURE, "no close frame")


def _remedy(error: Exception) -> str:
    if isinstance(error, ssl.SSLError) and error.reason in _NO_TLS_REASONS:
        return "no TLS there: try ws://"
    if isinstance(error, InvalidStatus) and error.response.status_code == HTTPStatus.NOT_FOUND:
        return "the service answers, but not there: the path is /ws"
    return "start the service with `websocket-service dev`, or correct --url"


def _why(error: Exception) -> str:
    if isinstance(error, InvalidStatus):
        return f"HTTP {error.response.status_code}"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, InvalidHandshake):
        return "no WebSocket service there"
    return (_system_reason(error) if isinstance(error, OSError) else "") or (
        str(error) or type(error).__name__
    )


def _system_reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        # Its errno is none of the system's.
        return error.reason.lower().replace("_", " ") if error.reason else ""
    if error.errno is not None and error.errno > 0:
        # Shorter than asyncio's own text, which repeats the address.
        return os.strerror(error.errno)
    return error.strerror or ""


@contextlib.contextmanager
def _reader_watched(stop: asyncio.Event) -> Iterator[None]:
    """Set `stop` when the reader of our pipe goes away: `tail | head` ends at once."""
    descriptor = sys.stdout.fileno()
    if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        yield
        return
    loop = asyncio.get_running_loop()
    # A pipe's writing end is never readable; what the loop reports here is its error state.
    loop.add_reader(descriptor, stop.set)
    try:
        yield
    finally:
        loop.remove_reader(descriptor)


def _discard_stdout() -> None:
    # What is still buffered would raise again when the interpreter flushes it at the end.
    with open(os.devnull, "w", encoding="utf-8") as devnull:  # noqa: PTH123 - a device, not a file
        os.dup2(devnull.fileno(), sys.stdout.fileno())
