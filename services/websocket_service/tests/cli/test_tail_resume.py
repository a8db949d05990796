"""`tail` and the real service, through everything that comes between them."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from huleedu_service_libs.redis_server import RedisServer
    from services.websocket_service.tests.cli.console import Console, Running

MISSED = "notifications may have been missed: "


@dataclass(frozen=True, slots=True)
class Deployment:
    """A Redis that stays, and a service that comes and goes on one port."""

    console: Console
    redis: RedisServer
    port: int
    variables: dict[str, str]

    @contextlib.asynccontextmanager
    async def service(self) -> AsyncIterator[Running]:
        async with self.console.start(
            *("serve", "--host", "127.0.0.1", "--port", str(self.port)), **self.variables
        ) as running:
            await running.error_line("Running on")
            yield running

    @contextlib.asynccontextmanager
    async def tail(self, *options: str) -> AsyncIterator[Running]:
        async with self.console.start(
            *("tail", "--url", f"ws://127.0.0.1:{self.port}/ws", "--user", "u", *options),
            **self.variables,
        ) as running:
            yield running

    async def notify(self, *events: str) -> list[str]:
        """Their ids."""
        ids = []
        for event in events:
            result = await self.console.run(
                *("notify", "--user", "u", "--event", event, "--data", "{}", "--json"),
                **self.variables,
            )
            assert result.status == 0, result.err
            ids.append(str(json.loads(result.out)["id"]))
        return ids


@pytest.fixture
def deployment(console: Console, redis_server: RedisServer) -> Deployment:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    variables = {
        "JWT_SECRET_KEY": "k" * 40,
        "REDIS_URL": redis_server.url,
        "NOTIFICATION_HISTORY_SIZE": "5",
    }
    return Deployment(console, redis_server, port, variables)


async def kill(service: Running) -> None:
    service.signal(signal.SIGKILL)
    await service.ended()


async def event_of(tail: Running) -> str:
    return (await tail.line()).split("  ")[1]


@pytest.mark.parametrize("printed", [0, 1])
async def test_what_is_published_while_the_service_is_dead_arrives(
    deployment: Deployment, printed: int
) -> None:
    """After kill -9 and a restart each notification is printed once, in order."""
    await deployment.notify("before")
    async with contextlib.AsyncExitStack() as first:
        service = await first.enter_async_context(deployment.service())
        async with deployment.tail() as tail:
            await tail.error_line("connected to")
            for _ in range(printed):
                await deployment.notify("live")
                assert await event_of(tail) == "live"
            await kill(service)
            await tail.error_line("connection lost (1006")
            await deployment.notify("one", "two", "three")
            async with deployment.service():
                await tail.error_line("connected again")
                await tail.error_line("resumed: no durable notification is missing")
                await deployment.notify("four")
                assert [await event_of(tail) for _ in range(4)] == ["one", "two", "three", "four"]
                tail.interrupt()
                result = await tail.ended()
    assert (result.status, result.out, result.err) == (0, "", "")


async def test_it_resumes_through_one_restart_after_the_other(deployment: Deployment) -> None:
    """Killed or drained, whatever comes between is neither lost nor repeated."""
    seen = []
    async with contextlib.AsyncExitStack() as services:
        service = await services.enter_async_context(deployment.service())
        async with deployment.tail() as tail:
            await tail.error_line("connected to")
            await deployment.notify("first")
            seen.append(await event_of(tail))
            for number, ending in enumerate([signal.SIGKILL, signal.SIGTERM, signal.SIGKILL]):
                service.signal(ending)
                await service.ended()
                await tail.error_line("connection lost")
                await deployment.notify(f"away {number}")
                service = await services.enter_async_context(deployment.service())
                await tail.error_line("resumed: no durable notification is missing")
                await deployment.notify(f"there {number}")
                seen += [await event_of(tail), await event_of(tail)]
    assert seen == [
        "first",
        *(f"{where} {number}" for number in range(3) for where in ("away", "there")),
    ]


async def test_a_trimmed_history_is_told(deployment: Deployment) -> None:
    """More was published meanwhile than is kept: a line says so, and live ones go on."""
    async with contextlib.AsyncExitStack() as first:
        service = await first.enter_async_context(deployment.service())
        async with deployment.tail("--json") as tail:
            await tail.error_line("connected to")
            await deployment.notify("live")
            await tail.line()
            await kill(service)
            *_, newest = await deployment.notify(*"abcdefg")
            async with deployment.service():
                line = await tail.error_line(MISSED)
                assert line == f"{MISSED}older ones are no longer kept (history_trimmed)"
                assert json.loads(await tail.line()) == {
                    "type": "resync",
                    "reason": "history_trimmed",
                    "cursor": newest,
                }
                await deployment.notify("after")
                assert json.loads(await tail.line())["event"] == "after"


async def test_a_redis_that_lost_everything_is_told(deployment: Deployment) -> None:
    """While the connection stays open, and again once there is a connection to resume."""
    async with contextlib.AsyncExitStack() as first:
        service = await first.enter_async_context(deployment.service())
        async with deployment.tail() as tail:
            await tail.error_line("connected to")
            await deployment.notify("live")
            assert await event_of(tail) == "live"
            await deployment.redis.kill()
            await deployment.redis.launch()
            line = await tail.error_line(MISSED)
            assert line == f"{MISSED}Redis has lost what it kept (history_lost)"
            await deployment.notify("anew")
            assert await event_of(tail) == "anew"
            await kill(service)
            await deployment.redis.kill()
            await deployment.redis.launch()
            async with deployment.service():
                await tail.error_line("Redis has lost what it kept (history_lost)")
                await deployment.notify("once more")
                assert await event_of(tail) == "once more"


async def test_a_new_dev_that_knows_nothing_is_told(console: Console) -> None:
    """A `dev` brings an empty Redis: what its predecessor kept is gone."""
    notify = ("notify", "--user", "teacher-1", "--data", "{}", "--event")
    async with contextlib.AsyncExitStack() as first:
        dev = await first.enter_async_context(console.start("dev", "--port", "0", "--json"))
        assert await dev.line()
        async with console.start("tail", "--count", "2") as tail:
            await tail.error_line("connected to")
            await console.run(*notify, "first")
            assert await event_of(tail) == "first"
            dev.signal(signal.SIGKILL)
            await dev.ended()
            async with console.start("dev", "--port", "0", "--json") as again:
                assert await again.line()
                await tail.error_line("connected again")
                await tail.error_line(f"{MISSED}Redis has lost what it kept (history_lost)")
                await console.run(*notify, "second")
                assert await event_of(tail) == "second"
                assert (await tail.ended()).status == 0


async def test_since_prints_what_followed(deployment: Deployment) -> None:
    """From an id that `notify` printed, once and in order, and then live ones."""
    first, *_ = await deployment.notify("a", "b", "c")
    async with deployment.service(), deployment.tail("--since", first, "--count", "3") as tail:
        await tail.error_line("resumed: no durable notification is missing")
        assert [await event_of(tail) for _ in range(2)] == ["b", "c"]
        await deployment.notify("d")
        assert await event_of(tail) == "d"
        assert (await tail.ended()).status == 0


@pytest.mark.parametrize("since", ["2-1", "no id"])
async def test_since_an_id_that_never_was_is_told(deployment: Deployment, since: str) -> None:
    """It goes on with what comes, and says why."""
    await deployment.notify("a", "b", "c")
    async with deployment.service(), deployment.tail("--since", since, "--count", "1") as tail:
        line = await tail.error_line(MISSED)
        assert line.endswith("the service does not know the id to go on from (cursor_unknown)")
        await deployment.notify("d")
        assert await event_of(tail) == "d"
        assert (await tail.ended()).status == 0
