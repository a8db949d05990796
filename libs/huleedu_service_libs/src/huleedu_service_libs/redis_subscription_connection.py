"""The wire side of `redis_subscription_link`: one RESP2 connection, from handshake to loss.

What always holds:

1. Redis answers commands in the order in which they were written, so each reply belongs to the
   head of one queue, whatever its kind. An acknowledgement must also name the channel that is
   due; anything else ends the connection rather than shift every later answer by one.
2. Payloads are handed over inside `buffer_updated`, before the event loop turns.
3. A node of a cluster may take a shard channel back by itself, when its slot goes elsewhere.
   What was asked of that channel at the same time is then answered with MOVED.

`hiredis.Reader` is fed straight from the socket: redis-py's own pub/sub loop costs about ten
times the CPU per message.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Final, Protocol

import hiredis
from redis import exceptions

from huleedu_service_libs.redis_address import Credentials
from huleedu_service_libs.redis_channels import hash_slot

logger = logging.getLogger(__name__)

# Redis executes a command whole: a smaller batch lets other clients in between.
CHANNELS_PER_COMMAND: Final = 500
# What has piled up behind a slow turn of the event loop comes in one piece, so that a subscriber
# is woken once for all that it is sent.
BUFFER_BYTES: Final = 1024 * 1024
READ_PER_TURN_BYTES: Final = 131_072
# A storm of subscribers shares commands; one that comes alone does not wait.
SUBSCRIBE_INTERVAL_S: Final = 0.002
# hiredis moves all that it has not parsed yet after each KiB that it has: parsing a message of
# 250 bytes takes 0.2 µs out of pieces of this size, 0.9 µs out of 256 KiB and 3 µs out of 1 MiB.
PARSED_AT_ONCE_BYTES: Final = 16 * 1024


@dataclass(frozen=True, slots=True)
class PubSub:
    """The words of one kind of publish and subscribe, as Redis writes them in replies."""

    subscribe: bytes
    unsubscribe: bytes
    message: bytes
    sharded: bool


CLASSIC: Final = PubSub(b"subscribe", b"unsubscribe", b"message", sharded=False)
"""What is published on any node of a cluster comes on every other."""
SHARDED: Final = PubSub(b"ssubscribe", b"sunsubscribe", b"smessage", sharded=True)
"""What is published on the master of the channel's slot comes there."""

# What a node of a cluster says that does not have the slot, or not now.
_ELSEWHERE: Final = ("MOVED ", "ASK ", "CLUSTERDOWN ", "TRYAGAIN ", "LOADING ", "MASTERDOWN ")

Deliver = Callable[[bytes, bytes, float], None]
"""Takes a channel, a payload, and the event loop's time at which it came."""
Withdraw = Callable[[bytes], None]
"""Takes a channel that this node does not serve, or not any more."""


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
    """The acknowledgements that one (un)subscribing command still owes, in order."""

    command: bytes
    slot: int | None
    """Of all its channels, for a shard; None for classic ones."""
    channels: deque[Subscribable]


class SubscriptionConnection(asyncio.BufferedProtocol):
    """Sends commands, matches replies, and hands payloads to `deliver`."""

    def __init__(self, kind: PubSub, deliver: Deliver, withdraw: Withdraw) -> None:
        self._kind = kind
        self._deliver = deliver
        self._withdraw = withdraw
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader()
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._transport: asyncio.Transport | None = None
        # One entry per command without an answer yet; None is a ping.
        self._expected: deque[asyncio.Future[None] | _Batch | None] = deque()
        self._unsent: list[tuple[bytes, Subscribable]] = []
        self._flushed_at = -SUBSCRIBE_INTERVAL_S
        self.served = True
        """False where Redis, before version 7, has no shard channels at all."""
        self.last_heard = self._loop.time()
        # When the oldest ping was sent since which not a byte has come.
        self.unheard_since: float | None = None
        self.lost: asyncio.Future[Exception] = self._loop.create_future()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # a stream's
        # uvloop's transports are no subclasses of asyncio's: there is nothing to check.
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(
            exceptions.ConnectionError(f"Redis closed the subscription connection: {exc or 'EOF'}")
        )

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.last_heard = now = self._loop.time()
        self.unheard_since = None
        if nbytes > READ_PER_TURN_BYTES:
            self._read_on_next_turn()
        received = self._buffer[:nbytes]
        try:
            for start in range(0, nbytes, PARSED_AT_ONCE_BYTES):
                self._reader.feed(bytes(received[start : start + PARSED_AT_ONCE_BYTES]))
                self._take_replies(now)
        except hiredis.ProtocolError as error:
            self._fail(exceptions.ConnectionError(f"not a Redis protocol reply: {error}"))
        except exceptions.ConnectionError as error:
            self._fail(error)

    def _read_on_next_turn(self) -> None:
        """Let subscribers take what has come: uvloop reads up to 32 times before they can."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()
            self._loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def _take_replies(self, now: float) -> None:
        next_reply, deliver, message = self._reader.gets, self._deliver, self._kind.message
        while (reply := next_reply()) is not False:
            if not isinstance(reply, list):
                self._replied(reply if isinstance(reply, hiredis.ReplyError) else None)
            elif reply[0] == message:
                deliver(reply[1], reply[2], now)
            elif reply[0] == b"pong":  # a ping's answer while anything is subscribed
                self._replied(None)
            else:
                self._acknowledged(reply[0], reply[1])

    def _acknowledged(self, command: bytes, name: bytes) -> None:
        batch = self._expected[0] if self._expected else None
        if (
            isinstance(batch, _Batch)
            and batch.command == command
            and batch.channels[0].name == name
        ):
            channel = batch.channels.popleft()
            if not batch.channels:
                self._expected.popleft()
            if command == self._kind.subscribe:
                channel.acknowledge()
        elif command == SHARDED.unsubscribe:
            self._withdraw(name)
        else:
            raise exceptions.ConnectionError("Redis acknowledged what was not asked for")

    def _replied(self, error: Exception | None) -> None:
        if error is not None and self._is_late(error):
            return
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

    def _is_late(self, error: Exception) -> bool:
        """Whether it answers a command that seemed to be answered already.

        Where a slot moved before Redis had read our command to unsubscribe its channels, what
        Redis sent of itself looked like the answer. The answer is this, and nothing waits for it.
        """
        text = str(error)
        if not text.startswith("MOVED "):
            return False
        batch = self._expected[0] if self._expected else None
        return not (isinstance(batch, _Batch) and batch.slot == int(text.split()[1]))

    def _refused(self, batch: _Batch, error: Exception | None) -> None:
        if error is None:
            raise exceptions.ConnectionError("Redis answered a subscription with something else")
        text = str(error)
        if batch.command == self._kind.unsubscribe:
            # What still comes for the channel finds no subscriber.
            if not text.startswith(_ELSEWHERE):
                logger.warning("redis refused to unsubscribe: %s", error)
        elif batch.slot is not None and text.startswith(_ELSEWHERE):
            for channel in batch.channels:
                self._withdraw(channel.name)
        elif len(batch.channels) == 1:
            batch.channels[0].refuse(error)
        else:
            # Redis refuses the whole command for the sake of one channel. The others must not
            # pay for it, and which one it was shows only one by one.
            wanted = [channel for channel in batch.channels if channel.wanted]
            self._send(_Batch(batch.command, batch.slot, deque([channel])) for channel in wanted)

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

    async def close(self) -> None:
        """Drop the connection, and return once it is gone."""
        self.abort()
        await asyncio.wait([self.lost])

    async def handshake(self, credentials: Credentials, client_name: str) -> None:
        """Authenticate, name the connection, and find out whether its kind is `served`.

        Raises redis-py's `AuthenticationError`, or `ConnectionError`.
        """
        username, password = credentials.username, credentials.password
        if password:
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

        if self._kind.sharded:
            await self._find_out_whether_served()

    async def _find_out_whether_served(self) -> None:
        try:
            # Without a channel it is wrong for all, in one way or the other.
            await self._call("SSUBSCRIBE")
        except hiredis.ReplyError as error:
            self.served = not str(error).startswith("ERR unknown command")

    async def answer(self) -> None:
        """Return once Redis has answered a ping.

        Raises why the connection was lost, or redis-py's `ConnectionError` with what Redis says
        in place of an answer.
        """
        try:
            await self._call("PING")
        except hiredis.ReplyError as error:
            # For example "LOADING": a replica that gets its data anew refuses even this.
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

    def subscribe(self, channel: Subscribable) -> None:
        """Subscribe it together with those that come within `SUBSCRIBE_INTERVAL_S`."""
        if not self.served:
            # Nobody can publish there either, so there is nothing to wait for.
            channel.acknowledge()
            return
        if not self._unsent:
            self._loop.call_at(self._flushed_at + SUBSCRIBE_INTERVAL_S, self._flush)
        self._unsent.append((self._kind.subscribe, channel))

    def unsubscribe(self, channel: Subscribable) -> None:
        """The reverse, in the order of the calls, with others of this turn of the event loop."""
        if self.served:
            self._unsent.append((self._kind.unsubscribe, channel))
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        if not self._unsent:
            return
        self._flushed_at = self._loop.time()
        unsent, self._unsent = self._unsent, []
        if not self.lost.done():
            self._send(_batches(unsent, sharded=self._kind.sharded))

    def _send(self, batches: Iterable[_Batch]) -> None:
        commands = []
        for batch in batches:
            self._expected.append(batch)
            commands.append(_pack(batch.command, *[channel.name for channel in batch.channels]))
        self._write(b"".join(commands))

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


def _pack(*words: str | bytes) -> bytes:
    packed: bytes = hiredis.pack_command(words)  # type: ignore[arg-type]  # its stub: one word
    return packed


def _batches(commands: list[tuple[bytes, Subscribable]], *, sharded: bool) -> Iterator[_Batch]:
    """Runs of the same command, in order, each short enough for one call and of one slot."""
    for command, run in groupby(commands, key=itemgetter(0)):
        # No channel stands twice in a run: between two subscriptions lies the end of the first.
        by_slot: dict[int | None, list[Subscribable]] = {}
        for _, channel in run:
            slot = hash_slot(channel.name.decode()) if sharded else None
            by_slot.setdefault(slot, []).append(channel)
        for slot, channels in by_slot.items():
            for start in range(0, len(channels), CHANNELS_PER_COMMAND):
                yield _Batch(command, slot, deque(channels[start : start + CHANNELS_PER_COMMAND]))
