"""Questions to servers that others can answer too, and answers that are shared and remembered."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, Generic, TypeVar

from redis import exceptions
from redis.asyncio.connection import AbstractConnection

from huleedu_service_libs.redis_address import Endpoint

T = TypeVar("T")

# Long enough for an answer from the next room, short beside a timeout: who hangs costs so much.
HEAD_START_S: Final = 0.25


async def ask(connection: AbstractConnection, *questions: Sequence[str]) -> list[Any]:
    """The replies to commands in one round trip, over a connection of their own.

    Raises redis-py's exceptions, those of a refused command among them.
    """
    try:
        await connection.connect()  # type: ignore[no-untyped-call]  # redis-py's
        await connection.send_packed_command(connection.pack_commands(questions))
        return [await connection.read_response() for _ in questions]
    finally:
        await connection.disconnect(nowait=True)


async def first_answer(
    attempts: Mapping[Endpoint, Callable[[], Coroutine[Any, Any, T]]], what: str
) -> T:
    """The first answer of several that may know, each asked a little later than the one before.

    The next one is asked at once where one fails. Raises redis-py's `AuthenticationError` or
    `ConnectionError` where all of them do, with `what` has failed and the reason of each.
    """
    waiting = list(attempts)
    asked: dict[asyncio.Task[T], Endpoint] = {}
    running: set[asyncio.Task[T]] = set()
    failures: list[exceptions.RedisError] = []
    reasons: list[str] = []
    try:
        while waiting or running:
            if waiting:
                endpoint = waiting.pop(0)
                task = asyncio.create_task(attempts[endpoint]())
                asked[task] = endpoint
                running.add(task)
            done, running = await asyncio.wait(
                running,
                timeout=HEAD_START_S if waiting else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for task in done:
                try:
                    return task.result()
                except exceptions.RedisError as error:
                    failures.append(error)
                    reasons.append(f"{asked[task]}: {error}")
    finally:
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
    kind = exceptions.ConnectionError
    if any(isinstance(error, exceptions.AuthenticationError) for error in failures):
        kind = exceptions.AuthenticationError
    raise kind(f"{what}: {'; '.join(reasons)}")


class SharedLookup(Generic[T]):
    """What `look_up` finds, remembered until it is doubted; those who ask at once share it.

    What `look_up` raises is one of redis-py's exceptions, with a text.
    """

    def __init__(self, look_up: Callable[[], Awaitable[T]]) -> None:
        self._look_up = look_up
        self._lock = asyncio.Lock()
        self._found: T | None = None
        self._failure: exceptions.RedisError | None = None
        # Lookups have numbers.
        self._begun = 0
        self._completed = 0
        self._doubts = 0
        # How many doubts there were when the last success began.
        self._settled = 0

    def doubt(self) -> None:
        """Have the next one who asks look it up anew."""
        self._doubts += 1

    @property
    def undoubted(self) -> T | None:
        """What was found last; None where that is in doubt, or nothing was found yet."""
        return self._found if self._settled == self._doubts else None

    async def known(self) -> T:
        """What was found last, unless that is in doubt."""
        found = self.undoubted
        return await self.fresh() if found is None else found

    async def fresh(self) -> T:
        """What a lookup finds that has not begun before now; raises what it raises."""
        begun_before = self._begun
        async with self._lock:
            # Somebody who was first to the lock may have done it for us.
            if self._completed <= begun_before:
                await self._begin()
            if self._failure is not None:
                # Not the same one, whose traceback would grow with each who shares it.
                raise type(self._failure)(*self._failure.args)
            assert self._found is not None  # noqa: S101 - else there is a failure
            return self._found

    async def _begin(self) -> None:
        self._begun += 1
        number, doubts = self._begun, self._doubts
        try:
            self._found = await self._look_up()
        except exceptions.RedisError as error:
            self._failure = error
        else:
            self._failure = None
            self._settled = doubts
        self._completed = number
