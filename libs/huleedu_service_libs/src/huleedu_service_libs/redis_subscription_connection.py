"""The wire side of `redis_subscriptions`: one RESP2 connection, from handshake to loss.

What always holds:

1. Redis answers commands in the order in which they were written, so each reply belongs to the
   head of one queue, whatever its kind. An acknowledgement must also name the channel that is
   due; anything else ends the connection rather than shift every later answer by one.
2. Payloads are handed over inside `data_received`, before the event loop turns.

`hiredis.Reader` is fed straight from the socket: redis-py's own pub/sub loop costs about ten
times the CPU per message.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import hiredis
from redis import exceptions
from redis.asyncio.connection import (
    ConnectKwargs,
    SSLConnection,
    UnixDomainSocketConnection,
    parse_url,
)

logger = logging.getLogger(__name__)

# Redis executes a command whole: a smaller batch lets other clients in between.
CHANNELS_PER_COMMAND: Final = 500
SUBSCRIBE: Final = b"subscribe"
UNSUBSCRIBE: Final = b"unsubscribe"


class Subscribable(Protocol):
    """What a connection has to know of a channel that it subscribes."""

    name: bytes

    @property
    def wanted(self) -> bool:
        """Whether anybody still waits for its acknowledgement or its payloads."""
        ...

    def acknowledge(self) -> None:
        """Redis sends what is published from here on."""
        ...

    def refuse(self, error: Exception) -> None:
        """Redis does not let this user subscribe the channel."""
        ...


@dataclass(slots=True)
class _Batch:
    """The acknowledgements that one SUBSCRIBE or UNSUBSCRIBE still owes, in order."""

    command: bytes
    channels: deque[Subscribable]


class SubscriptionConnection(asyncio.Protocol):
    """Sends commands, matches replies, hands payloads to `deliver(channel, data, loop time)`."""

    def __init__(self, deliver: Callable[[bytes, bytes, float], None]) -> None:
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader()
        self._transport: asyncio.Transport | None = None
        # One entry per command without an answer yet; None is a ping.
        self._expected: deque[asyncio.Future[None] | _Batch | None] = deque()
        self._unsent: list[tuple[bytes, Subscribable]] = []
        self.last_heard = self._loop.time()
        # When the oldest ping was sent since which not a byte has come.
        self.unheard_since: float | None = None
        self.lost: asyncio.Future[Exception] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - a stream, by create_connection
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(
            exceptions.ConnectionError(f"Redis closed the subscription connection: {exc or 'EOF'}")
        )

    def data_received(self, data: bytes) -> None:
        self.last_heard = now = self._loop.time()
        self.unheard_since = None
        reader = self._reader
        reader.feed(data)
        try:
            while (reply := reader.gets()) is not False:
                if not isinstance(reply, list):
                    self._replied(reply if isinstance(reply, hiredis.ReplyError) else None)
                elif reply[0] == b"message":
                    self._deliver(reply[1], reply[2], now)
                elif reply[0] == b"pong":  # a ping's answer while anything is subscribed
                    self._replied(None)
                else:
                    self._acknowledged(reply[0], reply[1])
        except hiredis.ProtocolError as error:
            self._fail(exceptions.ConnectionError(f"not a Redis protocol reply: {error}"))
        except exceptions.ConnectionError as error:
            self._fail(error)

    def _acknowledged(self, command: bytes, name: bytes) -> None:
        batch = self._expected[0] if self._expected else None
        if (
            not isinstance(batch, _Batch)
            or batch.command != command
            or batch.channels[0].name != name
        ):
            raise exceptions.ConnectionError("Redis acknowledged what was not asked for")
        channel = batch.channels.popleft()
        if not batch.channels:
            self._expected.popleft()
        if command == SUBSCRIBE:
            channel.acknowledge()

    def _replied(self, error: Exception | None) -> None:
        expected = self._expected.popleft() if self._expected else None
        if isinstance(expected, _Batch):
            self._refused(expected, error)
        elif expected is not None and not expected.done():
            if error is None:
                expected.set_result(None)
            else:
                expected.set_exception(error)
        elif error is not None:
            # To a ping, or to nothing: Redis says why it is about to close.
            logger.warning("redis sent an error on the subscription connection: %s", error)

    def _refused(self, batch: _Batch, error: Exception | None) -> None:
        if error is None:
            raise exceptions.ConnectionError("Redis answered a subscription with something else")
        if batch.command == UNSUBSCRIBE:
            # What still comes for the channel finds no subscriber.
            logger.warning("redis refused to unsubscribe: %s", error)
        elif len(batch.channels) == 1:
            batch.channels[0].refuse(error)
        else:
            # Redis refuses the whole command for the sake of one channel. The others must not
            # pay for it, and which one it was shows only one by one.
            for channel in batch.channels:
                if channel.wanted:
                    self._send(SUBSCRIBE, [channel])

    def _fail(self, error: Exception) -> None:
        if self.lost.done():
            return
        self.lost.set_result(error)
        for expected in self._expected:
            if isinstance(expected, asyncio.Future) and not expected.done():
                expected.set_exception(error)
        self.abort()

    def abort(self) -> None:
        """Drop the connection without waiting for anything that is still unsent."""
        if self._transport is not None:
            self._transport.abort()

    async def handshake(self, address: ConnectKwargs, client_name: str) -> None:
        """Authenticate and name the connection; raises redis-py's `AuthenticationError`."""
        password = address.get("password")
        if password:
            username = address.get("username")
            try:
                await self._call("AUTH", *([username] if username else []), password)
            except hiredis.ReplyError as error:
                # A Redis without this command quotes its arguments.
                text = str(error).replace(password, "***")
                raise exceptions.AuthenticationError(text) from None
        try:
            await self._call("CLIENT", "SETNAME", client_name)
        except hiredis.ReplyError as error:
            if str(error).startswith("NOAUTH"):
                raise exceptions.AuthenticationError(str(error)) from error
            # For example "max number of clients reached".
            raise exceptions.ConnectionError(str(error)) from error

    async def _call(self, *command: str) -> None:
        reply: asyncio.Future[None] = self._loop.create_future()
        if self.lost.done():
            raise self.lost.result()
        self._expected.append(reply)
        self._write(_pack(*command))
        await reply

    def ping(self) -> None:
        """Ask Redis for a sign of life; `unheard_since` is None once one has come."""
        if self.unheard_since is None:
            self.unheard_since = self._loop.time()
        self._expected.append(None)
        self._write(_pack("PING"))

    def enqueue(self, command: bytes, channel: Subscribable) -> None:
        """Send SUBSCRIBE or UNSUBSCRIBE together with others of this turn of the event loop."""
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append((command, channel))

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        if not self.lost.done():
            for command, channels in _batches(unsent):
                self._send(command, channels)

    def _send(self, command: bytes, channels: Sequence[Subscribable]) -> None:
        self._expected.append(_Batch(command, deque(channels)))
        self._write(_pack(command, *[channel.name for channel in channels]))

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


def _pack(*words: str | bytes) -> bytes:
    packed: bytes = hiredis.pack_command(words)  # type: ignore[arg-type]  # its stub: one word
    return packed


def _batches(
    commands: list[tuple[bytes, Subscribable]],
) -> Iterator[tuple[bytes, list[Subscribable]]]:
    """Runs of the same command, in order, each short enough for one call."""
    batch: list[Subscribable] = []
    for index, (command, channel) in enumerate(commands):
        batch.append(channel)
        last = index + 1 == len(commands)
        if last or commands[index + 1][0] != command or len(batch) == CHANNELS_PER_COMMAND:
            yield command, batch
            batch = []


def parse_redis_url(redis_url: str) -> ConnectKwargs:
    """redis-py's connection arguments; raises ValueError for a URL that is none."""
    try:
        return parse_url(redis_url)
    except ValueError:
        # urllib's message quotes what it took for the port, and a password with an unescaped
        # slash makes that a piece of the password.
        raise ValueError(
            "not a Redis URL: expected redis://, rediss:// or unix://, with the special "
            "characters of a password percent-encoded"
        ) from None


class SubscriptionAddress:
    """Where to connect: TCP, TLS or a Unix socket, as the URL says."""

    def __init__(self, redis_url: str) -> None:
        self.arguments = parse_redis_url(redis_url)
        kind = self.arguments.get("connection_class")
        self._is_unix_socket = kind is UnixDomainSocketConnection
        # Reads certificates once, on the first connection, not on each.
        options: dict[str, Any] = {
            name: value for name, value in self.arguments.items() if name.startswith("ssl_")
        }
        self._tls = SSLConnection(**options).ssl_context if kind is SSLConnection else None
        self._host = self.arguments.get("host", "localhost")
        self._port = self.arguments.get("port", 6379)
        self._path = self.arguments.get("path", "")

    def __str__(self) -> str:
        return self._path if self._is_unix_socket else f"{self._host}:{self._port}"

    async def connect(
        self, deliver: Callable[[bytes, bytes, float], None]
    ) -> SubscriptionConnection:
        """Open a connection without a handshake; raises OSError."""
        loop = asyncio.get_running_loop()
        if self._is_unix_socket:
            _, connection = await loop.create_unix_connection(
                lambda: SubscriptionConnection(deliver), self._path
            )
            return connection
        _, connection = await loop.create_connection(
            lambda: SubscriptionConnection(deliver),
            self._host,
            self._port,
            ssl=self._tls.get() if self._tls else None,
        )
        return connection
