"""Connections of one user to several processes, some of which are killed."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from huleedu_service_libs.admission import Admission
from huleedu_service_libs.connection_leases import ConnectionLeases
from huleedu_service_libs.testing.polling import until

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator

    from huleedu_service_libs.redis_client import RedisClient
    from huleedu_service_libs.redis_server import RedisServer

WORKER = Path(__file__).with_name("lease_worker.py")
GIVE_UP_AFTER_S = 30.0
USER = "teacher-1"
LIMIT = 5


@asynccontextmanager
async def worker(
    server: RedisServer, name: str, attempts: int, duration_s: float
) -> AsyncIterator[Process]:
    """A process that is ready to try, and ends with the block."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        WORKER,
        *(server.url, name, str(attempts), str(duration_s)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert await said(process) == ["ready"]
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def said(process: Process) -> list[str]:
    assert process.stdout is not None
    async with asyncio.timeout(GIVE_UP_AFTER_S):
        return (await process.stdout.readline()).decode().split()


def tell_to_go_on(process: Process) -> None:
    assert process.stdin is not None
    process.stdin.write(b"\n")


async def test_two_hundred_attempts_at_once(server: RedisServer, client: RedisClient) -> None:
    """Of 200 tabs that a user opens at once, on four processes, exactly 5 get in."""
    async with (
        worker(server, "a", 50, 15) as a,
        worker(server, "b", 50, 15) as b,
        worker(server, "c", 50, 15) as c,
        worker(server, "d", 50, 15) as d,
    ):
        for process in (a, b, c, d):
            tell_to_go_on(process)
        answers = Counter[str]()
        for process in (a, b, c, d):
            answers.update(await said(process))
        assert answers == {"granted": LIMIT, "full": 200 - LIMIT}
        assert len(await ConnectionLeases(client).of_user(USER)) == LIMIT
        for process in (a, b, c, d):
            tell_to_go_on(process)
            assert await process.wait() == 0
    assert await ConnectionLeases(client).of_user(USER) == []


async def test_killed_process(server: RedisServer, client: RedisClient) -> None:
    """The places of a process that was killed are free again soon, and the user is told so."""
    duration_s = 4.0
    async with (
        worker(server, "a", 5, duration_s) as process,
        ConnectionLeases(client, duration_s=duration_s) as leases,
    ):
        tell_to_go_on(process)
        assert await said(process) == ["granted"] * LIMIT
        process.kill()
        await process.wait()
        answers = [await leases.acquire(USER, "0", limit=LIMIT)]

        async def has_place() -> bool:
            answers.append(await leases.acquire(USER, str(len(answers)), limit=LIMIT))
            return answers[-1] is Admission.GRANTED

        await until(has_place)
        in_order = [Admission.FULL, Admission.FULL_FOR_NOW, Admission.GRANTED]
        assert list(dict.fromkeys(answers)) == in_order
        (mine,) = await leases.of_user(USER)
        assert mine.connection_id == str(len(answers) - 1)


async def test_living_process_keeps_its_places(server: RedisServer, client: RedisClient) -> None:
    """The places of a process that lives stay taken, longer than those of a dead one."""
    async with (
        worker(server, "a", 4, 1.5) as living,
        worker(server, "b", 1, 1.5) as dying,
        ConnectionLeases(client, duration_s=1.5) as leases,
    ):
        for process in (living, dying):
            tell_to_go_on(process)
            assert set(await said(process)) == {"granted"}
        dying.kill()

        async def only_living_ones_count() -> bool:
            return len(await leases.of_user(USER)) == 4

        await until(only_living_ones_count)
        assert await leases.acquire(USER, "mine", limit=LIMIT) is Admission.GRANTED
        first_end = (await leases.of_user(USER))[0].ends_at

        async def all_are_renewed() -> bool:
            return (await leases.of_user(USER))[0].ends_at > first_end

        await until(all_are_renewed)
        assert {lease.connection_id for lease in await leases.of_user(USER)} == {
            *(f"a-{n}" for n in range(4)),
            "mine",
        }
