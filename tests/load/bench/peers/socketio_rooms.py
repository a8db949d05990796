"""python-socketio on uvicorn with its Redis manager, a room for each user."""

import os

import socketio

from tests.load.bench.peers.bearer import user_of

server = socketio.AsyncServer(
    async_mode="asgi", client_manager=socketio.AsyncRedisManager(os.environ["REDIS_URL"])
)
app = socketio.ASGIApp(server)


@server.event
async def connect(sid: str, environ: object, auth: dict[str, str] | None) -> None:  # noqa: ARG001 - socketio's signature
    """The token comes in the connect packet."""
    user = user_of((auth or {}).get("token", ""))
    if user is None:
        raise socketio.exceptions.ConnectionRefusedError("invalid token")
    await server.enter_room(sid, user)
