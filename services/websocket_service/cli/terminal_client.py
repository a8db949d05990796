"""The client behind `tail`: connects, receives, and comes back when the connection breaks."""

import asyncio
import contextlib
import json
import os
import ssl
import stat
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidStatus,
    InvalidURI,
    WebSocketException,
)
from websockets.typing import Subprotocol

from services.websocket_service.cli.backoff import Backoff
from services.websocket_service.cli.closing import Closing
from services.websocket_service.cli.discovery import RunningDev
from services.websocket_service.cli.minting import mint
from services.websocket_service.cli.output import CliError, say
from services.websocket_service.cli.printing import Frame, FramePrinter, ReaderGoneError
from services.websocket_service.cli.target import (
    SigningKey,
    find_dev,
    running_devs,
    service_url,
    signing_key,
    signs_with_dev,
)

DEFAULT_USER = "teacher-1"
_SUBPROTOCOL = "huleedu.notify.v1"
_TOKEN_LIFETIME = timedelta(days=1)
_LOOPBACK_HOSTS = frozenset({"127.0.0.1", "::1", "localhost"})
_OPEN_TIMEOUT_S = 10.0
_CLOSE_TIMEOUT_S = 1.0
# A connection that lived this long was a success: the next failure is a new one.
_STABLE_AFTER_S = 10.0
# One text frame holds as much as the service's outbox: 16 MiB, and room for commas.
_MAX_MESSAGE_BYTES = 32 * 1024 * 1024
_ABNORMAL_CLOSURE = 1006
_FIRST_SERVER_ERROR = 500
# What OpenSSL calls an answer that is no TLS; which of them depends on its version.
_NO_TLS_REASONS = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"})


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to connect (no credential in the URL), and with what."""

    url: str
    credential: str = field(repr=False)


Locate = Callable[[], Endpoint | None]
"""Called before each attempt; None while the service that was found is not running."""


def locate_service(
    *, user: str | None, token: str | None, url: str | None, dev_port: int | None
) -> Locate:
    """What the command line names, completed from the environment or a running `dev`.

    A URL as `dev` prints it, with its token in it, is taken apart. If nothing but a `dev` tells
    where to go, its next start counts as the same service.

    Raises CliError if there is no secret to make a token with.
    """
    if url is None and token is None and signs_with_dev(dev_port):
        dev = find_dev(dev_port)
        if dev is not None:
            return _FollowedDev(dev, user or DEFAULT_USER, wanted_port=dev_port).locate
    chosen_url, token_of_url = _without_token(url or service_url(dev_port))
    if token is None and user is None:
        token = token_of_url
    if token is not None:
        endpoint = Endpoint(chosen_url, token)
        return lambda: endpoint
    key = signing_key(dev_port)
    return lambda: _signed(chosen_url, key, user or DEFAULT_USER)


class _FollowedDev:
    """A `dev` through its restarts, which bring another secret and perhaps another port."""

    def __init__(self, dev: RunningDev, user: str, *, wanted_port: int | None) -> None:
        self._port = dev.port
        self._user = user
        self._wanted_port = wanted_port

    def locate(self) -> Endpoint | None:
        running = running_devs()
        candidates = [dev for dev in running if dev.port == self._port]
        if not candidates and self._wanted_port is None:
            candidates = running
        if not candidates:
            return None
        dev = candidates[0]
        self._port = dev.port
        return _signed(dev.url, SigningKey.of(dev), self._user)


def _signed(url: str, key: SigningKey, user: str) -> Endpoint:
    # A fresh token for each attempt: a tail may run for longer than one lives.
    return Endpoint(url, mint(key, user, _TOKEN_LIFETIME).token)


def _without_token(url: str) -> tuple[str, str | None]:
    parts = urlsplit(url)
    query = parse_qsl(parts.query, keep_blank_values=True)
    token = next((value for name, value in query if name == "token"), None)
    kept = urlencode([(name, value) for name, value in query if name != "token"])
    return urlunsplit(parts._replace(query=kept, fragment="")), token or None


async def run_tail(locate: Locate, printer: FramePrinter, stop: asyncio.Event) -> None:
    """Print frames until `stop` is set, the printer is done or nobody reads stdout any more.

    Raises CliError if the first attempt fails or the service refuses for good.
    """
    with _reader_watched(stop):
        tailing = asyncio.create_task(_Tail(locate, printer).run())
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
    def __init__(self, locate: Locate, printer: FramePrinter) -> None:
        self._locate = locate
        self._printer = printer
        self._backoff = Backoff()
        self._was_connected = False
        self._is_admitted = False
        self._error: Frame = {}

    async def run(self) -> None:
        """One connection after the other."""
        while True:
            endpoint = self._locate()
            if endpoint is None:
                await self._wait("no running `websocket-service dev` found: looking again")
                continue
            self._is_admitted = False
            self._error = {}
            opened_at = time.monotonic()
            try:
                async with _connection(endpoint) as connection:
                    await self._receive(connection, endpoint)
                    return
            except ConnectionClosed as closed:
                closing = _closing(closed, self._error)
            except (OSError, WebSocketException) as error:
                closing = self._failed_attempt(error, endpoint)
            if closing.is_normal:
                say("the service has closed the connection")
                return
            if closing.ends_tail:
                raise CliError(f"the service refused: {closing.description}: {closing.advice}")
            if time.monotonic() - opened_at > _STABLE_AFTER_S:
                self._backoff.reset()
            happened = "connection lost" if self._is_admitted else "not accepted"
            await self._wait(
                f"{happened} ({closing.description}): reconnecting", closing.retry_after_s
            )

    async def _wait(self, why: str, asked_for_s: float | None = None) -> None:
        delay_s = self._backoff.next_delay_s() if asked_for_s is None else asked_for_s
        say(f"{why} in {delay_s:.1f} s")
        await asyncio.sleep(delay_s)

    async def _receive(self, connection: ClientConnection, endpoint: Endpoint) -> None:
        if connection.subprotocol != _SUBPROTOCOL:
            self._admitted(endpoint, "")
        while True:
            for frame in _frames(await connection.recv()):
                if frame.get("type") == "welcome":
                    self._admitted(endpoint, f" as {frame.get('user_id')}")
                elif frame.get("type") == "error" and isinstance(frame.get("error"), dict):
                    self._error = frame["error"]
                self._printer.show(frame)
                if self._printer.is_done:
                    return

    def _admitted(self, endpoint: Endpoint, as_whom: str) -> None:
        again = " again" if self._was_connected else ""
        self._was_connected = self._is_admitted = True
        say(f"connected{again} to {endpoint.url}{as_whom} (Ctrl-C ends)")

    def _failed_attempt(self, error: OSError | WebSocketException, endpoint: Endpoint) -> Closing:
        """The end of a connection that never was; raises CliError where trying on is no use."""
        final = isinstance(error, InvalidStatus) and (
            error.response.status_code < _FIRST_SERVER_ERROR
        )
        if self._was_connected and not final:
            return Closing(_ABNORMAL_CLOSURE, _why(error))
        raise CliError(f"can't connect to {endpoint.url} ({_why(error)}): {_remedy(error)}")


def _connection(endpoint: Endpoint) -> connect:
    try:
        return connect(
            endpoint.url,
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


def _frames(message: str | bytes) -> list[Frame]:
    """The frames of one message; what is no JSON object becomes the data of a notification."""
    try:
        value: Any = json.loads(message)
    except ValueError:
        value = message if isinstance(message, str) else repr(message)
    values = value if isinstance(value, list) else [value]
    return [each if isinstance(each, dict) else {"data": each} for each in values]


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
