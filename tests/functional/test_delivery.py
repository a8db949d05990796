"""Published on Redis, seen in the tab."""

import asyncio
import json

import pytest
from redis.asyncio import Redis

from tests.service_process import ServiceProcess, receive_all

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_three_tabs_get_a_burst_in_order_byte_for_byte(
    service: ServiceProcess, redis: Redis
) -> None:
    """Three tabs of one user each get 10,000 notifications once, in order, as published."""
    published = [
        json.dumps({"event": "batch_status_updated", "data": {"n": n, "å": "é" * (n % 7)}})
        for n in range(10_000)
    ]
    async with service.connect() as a, service.connect() as b, service.connect() as c:
        received = asyncio.gather(*(receive_all(tab, len(published)) for tab in (a, b, c)))
        pipeline = redis.pipeline(transaction=False)
        for text in published:
            pipeline.publish("ws:teacher-1", text)
        await pipeline.execute()
        assert await received == [published] * 3


async def test_open_means_subscribed(service: ServiceProcess, redis: Redis) -> None:
    """As soon as a client sees its connection open, a publish reaches it: 100 of 100."""
    for n in range(100):
        async with service.connect() as tab:
            assert await redis.publish("ws:teacher-1", str(n)) == 1
            assert await tab.recv() == str(n)
