"""redis-py for one server, to see it and to change it from outside."""

from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff


class Admin(Redis):
    """A client of the server on a loopback port, or at the path of its Unix socket.

    Replies are text, and nothing is sent twice.
    """

    def __init__(self, place: int | Path, password: str | None = None) -> None:
        super().__init__(
            port=place if isinstance(place, int) else 0,
            unix_socket_path=str(place) if isinstance(place, Path) else None,
            password=password,
            protocol=2,
            decode_responses=True,
            retry=Retry(NoBackoff(), 0),
        )

    async def ask(self, *command: str | float) -> Any:
        """The reply to any command, as Redis has sent it: redis-py would convert some of them."""
        connection = await self.connection_pool.get_connection()  # type: ignore[no-untyped-call]  # redis-py's
        try:
            await connection.send_command(*command)
            return await connection.read_response()
        finally:
            await self.connection_pool.release(connection)
