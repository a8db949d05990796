"""Places for connections, over a real Redis."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from huleedu_service_libs.admission import Admission
from huleedu_service_libs.connection_control import ConnectionControl
from huleedu_service_libs.connection_leases import ConnectionLeases
from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_server import RedisServer
from huleedu_service_libs.testing.polling import until
from huleedu_service_libs.token_revocations import TokenRevocations
from services.websocket_service.implementations.backplane import RedisBackplane
from services.websocket_service.implementations.connection_places import ConnectionPlaces
from services.websocket_service.implementations.control_listener import ControlListener
from services.websocket_service.protocols import BackplaneUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LIMIT = 2


@asynccontextmanager
async def process(server: RedisServer, *, is_alive: bool = True) -> AsyncIterator[ConnectionPlaces]:
    """A process with places; one that is not alive holds what it has and answers nobody."""
    async with (
        RedisClient(client_id="test", redis_url=server.url) as client,
        ConnectionLeases(client) as leases,
    ):
        control = ConnectionControl(client)
        places = ConnectionPlaces(leases, control, LIMIT)
        if not is_alive:
            yield places
            return
        async with ControlListener(
            RedisBackplane(client),
            RedisBackplane(client),
            control.channel,
            TokenRevocations(client, retention_s=60),
            on_revoked=lambda _: None,
            on_disconnect=lambda _: None,
            on_confirm=leases.renew_now,
        ) as listener:

            async def is_listening() -> bool:
                return listener.is_current

            await until(is_listening)
            yield places


async def test_places_of_a_user() -> None:
    """A user has as many places as are configured, wherever, and who leaves gives one back."""
    async with RedisServer() as server, process(server) as one, process(server) as other:
        assert await one.acquire("t", "a") is Admission.GRANTED
        assert await other.acquire("t", "b") is Admission.GRANTED
        assert await one.acquire("t", "c") is Admission.FULL
        assert await other.acquire("t", "d") is Admission.FULL
        one.release("t", "a")
        assert await one.acquire("t", "e") is Admission.GRANTED


async def test_place_that_was_given_back_a_moment_ago() -> None:
    """Who closes a tab and opens another is let in, also by a process that has not heard of it."""
    async with RedisServer() as server, process(server) as one, process(server) as other:
        for name in ("a", "b"):
            await one.acquire("t", name)
        asked = asyncio.create_task(other.acquire("t", "c"))
        await asyncio.sleep(0)
        one.release("t", "a")
        assert await asked is Admission.GRANTED


async def test_places_of_the_dead() -> None:
    """Places of a process that does not answer are about to lapse, however fresh they are."""
    async with (
        RedisServer() as server,
        process(server) as one,
        process(server, is_alive=False) as dead,
    ):
        await one.acquire("t", "a")
        await dead.acquire("t", "b")
        assert await one.acquire("t", "c") is Admission.FULL_FOR_NOW
        async with process(server) as other:
            await other.acquire("u", "d")
            await one.acquire("u", "e")
            assert await other.acquire("u", "f") is Admission.FULL


async def test_many_at_once() -> None:
    """However many ask, as many as are allowed get a place, and all others a clear no."""
    async with RedisServer() as server, process(server) as one, process(server) as other:
        answers = await asyncio.gather(
            *(places.acquire("t", f"{n} {places}") for n in range(50) for places in (one, other))
        )
        assert answers.count(Admission.GRANTED) == LIMIT
        assert answers.count(Admission.FULL) == len(answers) - LIMIT


async def test_one_that_gives_up_does_not_take_the_others_along() -> None:
    """A client that leaves while the places are being confirmed leaves the others an answer."""
    async with RedisServer() as server, process(server) as one:
        for name in ("a", "b"):
            await one.acquire("t", name)
        first = asyncio.create_task(one.acquire("t", "c"))
        others = [asyncio.create_task(one.acquire("t", name)) for name in ("d", "e")]
        await until(lambda: _is_confirming(one))
        first.cancel()
        answers = await asyncio.gather(*others, return_exceptions=True)
        assert [type(answer) for answer in answers] == [BackplaneUnavailableError] * 2
        assert await one.acquire("t", "f") is Admission.FULL


async def _is_confirming(places: ConnectionPlaces) -> bool:
    return bool(places._confirmations)


async def test_redis_is_away() -> None:
    """While Redis is away nobody gets a place, and giving one back is no error."""
    async with RedisServer() as server, process(server, is_alive=False) as places:
        await places.acquire("t", "a")
        await server.kill()
        with pytest.raises(BackplaneUnavailableError):
            await places.acquire("t", "b")
        places.release("t", "b")
        places.release("t", "a")
