"""Questions that several servers can answer, and many callers ask."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from redis import exceptions

from huleedu_service_libs.redis_address import Endpoint
from huleedu_service_libs.redis_lookups import SharedLookup, first_answer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ONE, TWO, THREE = (Endpoint("h", port) for port in (1, 2, 3))


async def says(answer: str) -> str:
    return answer


async def fails(error: exceptions.RedisError) -> str:
    raise error


async def test_first_answer_wins() -> None:
    """Who hangs delays the answer of the next one a little, and is asked no longer then."""
    cancelled = asyncio.Event()

    async def hang() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return "never"

    answer = await first_answer({ONE: hang, TWO: lambda: says("two"), THREE: hang}, "nobody")
    assert answer == "two"
    assert cancelled.is_set()


async def test_a_failure_is_passed_over() -> None:
    """After a failure the next one is asked."""
    refuses = {ONE: lambda: fails(exceptions.ConnectionError("away")), TWO: lambda: says("two")}
    assert await first_answer(refuses, "nobody") == "two"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (exceptions.ResponseError("unknown command"), exceptions.ConnectionError),
        (exceptions.AuthenticationError("wrong"), exceptions.AuthenticationError),
    ],
)
async def test_nobody_answers(
    error: exceptions.RedisError, kind: type[exceptions.ConnectionError]
) -> None:
    """Everybody's reason is told, and a wrong password shows in the kind of the error."""
    attempts = {ONE: lambda: fails(exceptions.ConnectionError("away")), TWO: lambda: fails(error)}
    with pytest.raises(exceptions.ConnectionError, match=f"^nobody: h:1: away; h:2: {error}") as it:
        await first_answer(attempts, "nobody")
    assert type(it.value) is kind


class Oracle:
    """Answers with the number of the question, once it may."""

    def __init__(self) -> None:
        self.asked = 0
        self.may_answer = asyncio.Semaphore(0)
        self.error: exceptions.RedisError | None = None

    async def answer(self) -> int:
        self.asked += 1
        number = self.asked
        await self.may_answer.acquire()
        if self.error is not None:
            raise self.error
        return number


async def begun(*asks: Callable[[], Awaitable[int]]) -> list[asyncio.Task[int]]:
    """Tasks that have come as far as they can."""

    async def call(ask: Callable[[], Awaitable[int]]) -> int:
        return await ask()

    tasks = [asyncio.create_task(call(ask)) for ask in asks]
    for _ in range(5):
        await asyncio.sleep(0)
    return tasks


async def test_who_asks_later_gets_no_older_answer() -> None:
    """A lookup that has begun before is too old for who asks now; the next one serves all."""
    oracle = Oracle()
    lookup = SharedLookup(oracle.answer)
    (first,) = await begun(lookup.fresh)
    later = await begun(*[lookup.fresh] * 10)
    oracle.may_answer.release()
    oracle.may_answer.release()
    assert await first == 1
    assert await asyncio.gather(*later) == [2] * 10
    assert oracle.asked == 2


async def test_what_is_known_is_not_asked_again() -> None:
    """Until it is doubted; a doubt that comes during a lookup is not settled by it."""
    oracle = Oracle()
    lookup = SharedLookup(oracle.answer)
    oracle.may_answer.release()
    assert await lookup.known() == 1
    assert await lookup.known() == 1
    lookup.doubt()
    (second,) = await begun(lookup.known)
    lookup.doubt()
    oracle.may_answer.release()
    assert await second == 2
    oracle.may_answer.release()
    assert await lookup.known() == 3
    assert await lookup.known() == 3


async def test_a_failure_is_shared() -> None:
    """Who asks while a lookup is due fails with it, and the next one tries again."""
    oracle = Oracle()
    lookup = SharedLookup(oracle.answer)
    oracle.error = exceptions.ConnectionError("away")
    tasks = await begun(lookup.known, *[lookup.known] * 5)
    oracle.may_answer.release()
    oracle.may_answer.release()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert {str(outcome) for outcome in outcomes} == {"away"}
    assert len(set(map(id, outcomes))) == 6
    assert oracle.asked == 2
    oracle.error = None
    oracle.may_answer.release()
    assert await lookup.known() == 3


async def test_a_cancelled_lookup_answers_nobody() -> None:
    """Who waits for a lookup whose caller gives up looks for itself."""
    oracle = Oracle()
    lookup = SharedLookup(oracle.answer)
    (first,) = await begun(lookup.fresh)
    (second,) = await begun(lookup.fresh)
    first.cancel()
    await asyncio.wait([first])
    oracle.may_answer.release()
    assert await second == 2
