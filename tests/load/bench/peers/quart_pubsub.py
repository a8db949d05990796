"""The naive service: Quart on Hypercorn, a redis-py subscription for each WebSocket."""

import os

from quart import Quart, websocket
from redis.asyncio import Redis

from tests.load.bench.peers.bearer import user_of_header

app = Quart(__name__)
# The pool's own limit is 100.
redis = Redis.from_url(os.environ["REDIS_URL"], decode_responses=True, max_connections=100_000)


@app.websocket("/ws")
async def notifications() -> None:
    """Quart cancels this when the client goes."""
    user = user_of_header(websocket.headers.get("Authorization", ""))
    if user is None:
        await websocket.close(1008)
        return
    async with redis.pubsub(ignore_subscribe_messages=True) as subscription:
        await subscription.subscribe(f"ws:{user}")
        await websocket.accept()
        async for message in subscription.listen():
            if message is not None and message["type"] == "message":
                await websocket.send(message["data"])
