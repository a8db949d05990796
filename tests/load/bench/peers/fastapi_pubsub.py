"""FastAPI on uvicorn, a redis-py subscription for each WebSocket, as tutorials have it."""

import asyncio
import os

from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from redis.asyncio import Redis

from tests.load.bench.peers.bearer import user_of_header

app = FastAPI()
# The pool's own limit is 100.
redis = Redis.from_url(os.environ["REDIS_URL"], decode_responses=True, max_connections=100_000)


@app.websocket("/ws")
async def notifications(websocket: WebSocket) -> None:
    """One task forwards; this one notices that the client goes."""
    user = user_of_header(websocket.headers.get("Authorization", ""))
    if user is None:
        await websocket.close(1008)
        return
    async with redis.pubsub(ignore_subscribe_messages=True) as subscription:
        await subscription.subscribe(f"ws:{user}")
        await websocket.accept()

        async def forward() -> None:
            async for message in subscription.listen():
                if message is not None and message["type"] == "message":
                    await websocket.send_text(message["data"])

        forwarding = asyncio.create_task(forward())
        try:
            while True:
                await websocket.receive_text()
        except WebSocketDisconnect:
            pass
        finally:
            forwarding.cancel()
            await asyncio.wait([forwarding])
