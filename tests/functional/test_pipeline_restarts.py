"""From a command to the tab, while a part of the way is restarted in the middle."""

import signal
from collections.abc import AsyncIterator

import pytest_asyncio

from tests.functional.pipeline import Pipeline, batch_and_type, pipeline, shown
from tests.functional.v1_tab import v1_tab


@pytest_asyncio.fixture
async def flow() -> AsyncIterator[Pipeline]:
    async with pipeline() as running:
        yield running


async def test_the_bridge_is_killed_in_the_middle(flow: Pipeline) -> None:
    """What was requested while there was no bridge comes with the next one, each once, in order."""
    async with v1_tab(flow.websockets, "teacher-8") as tab:
        async with flow.bridge() as bridge:
            batches = [await flow.command("teacher-8") for _ in range(10)]
            frames = await tab.notifications(5)
            bridge.signal_all(signal.SIGKILL)
            await bridge.wait()
        batches += [await flow.command("teacher-8") for _ in range(5)]
        async with flow.bridge():
            batches += [await flow.command("teacher-8") for _ in range(5)]
            frames += await tab.notifications(2 * len(batches) - len(frames))
            batches.append(await flow.command("teacher-8"))
            frames += await tab.notifications(2)
    assert [batch_and_type(frame) for frame in frames] == shown(*batches)


async def test_redis_is_killed_in_the_middle(flow: Pipeline) -> None:
    """Commands are taken while Redis is away; the same tab shows each of them once, in order."""
    async with flow.bridge(), v1_tab(flow.websockets, "teacher-9") as tab:
        batches = [await flow.command("teacher-9") for _ in range(5)]
        frames = await tab.notifications(1)
        await flow.redis.kill()
        batches += [await flow.command("teacher-9") for _ in range(5)]
        await flow.redis.launch()
        batches += [await flow.command("teacher-9") for _ in range(5)]
        frames += await tab.notifications(2 * len(batches) - len(frames))
        batches.append(await flow.command("teacher-9"))
        frames += await tab.notifications(2)
    assert [batch_and_type(frame) for frame in frames] == shown(*batches)
