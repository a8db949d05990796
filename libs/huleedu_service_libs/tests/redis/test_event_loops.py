"""The client on every event loop that is installed."""

import asyncio
import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from huleedu_service_libs.notification_ids import is_origin
from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_server import RedisServer
from huleedu_service_libs.testing.polling import until

EVENT_LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
}
if importlib.util.find_spec("uvloop"):
    import uvloop

    EVENT_LOOPS["uvloop"] = uvloop.new_event_loop


async def hears_and_reads(binary: Path) -> None:
    async with (
        RedisServer(binary) as server,
        RedisClient(client_id="test", redis_url=server.url) as client,
        client.subscribe(client.get_user_channel("t")) as subscription,
    ):
        places = await asyncio.gather(*(client.history.newest(f"user-{n}") for n in range(500)))
        assert all(map(is_origin, places))
        assert await client.publish_user_notification("t", "e", {"text": "x" * 60_000}) == 1
        (payload,) = await subscription.next_batch()
        (kept,) = await client.history.kept("t", max_entries=10)
        assert kept.payload == payload
        await server.kill()
        await server.launch()

        async def hears() -> bool:
            return client.hears

        await until(hears)
        assert await client.publish(client.get_user_channel("t"), b"again") == 1
        assert await anext(subscription) == b"again"


@pytest.mark.parametrize("event_loop_type", EVENT_LOOPS)
def test_hears_and_reads(redis_binary: Path, event_loop_type: str) -> None:
    """Subscriptions and histories work on each event loop, also when Redis has been away."""
    with asyncio.Runner(loop_factory=EVENT_LOOPS[event_loop_type]) as runner:
        runner.run(hears_and_reads(redis_binary))
