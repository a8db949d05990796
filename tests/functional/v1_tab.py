"""A tab that speaks v1, and what backend services publish for it."""

import contextlib
import json
from collections import deque
from collections.abc import AsyncIterator, Iterable
from typing import Any

from websockets.asyncio.client import ClientConnection

from huleedu_service_libs.notification_ids import NotificationId
from huleedu_service_libs.notifications import Notification
from huleedu_service_libs.redis_client import RedisClient
from tests.service_process import ServiceProcess

V1 = "huleedu.notify.v1"
_IN_ONE_ROUND_TRIP = 500


class Tab:
    """A connection after its `welcome`. Heartbeats are not shown."""

    def __init__(self, connection: ClientConnection, welcome: dict[str, Any]) -> None:
        self.connection = connection
        self.welcome = welcome
        self._frames: deque[dict[str, Any]] = deque()

    async def frame(self) -> dict[str, Any]:
        """The next frame."""
        while not self._frames:
            message = json.loads(await self.connection.recv())
            frames = message if isinstance(message, list) else [message]
            self._frames.extend(frame for frame in frames if frame["type"] != "heartbeat")
        return self._frames.popleft()

    async def notifications(self, count: int) -> list[dict[str, Any]]:
        """The next frames, which must be notifications."""
        frames = [await self.frame() for _ in range(count)]
        assert {frame["type"] for frame in frames} <= {"notification"}
        return frames

    async def numbers(self, count: int) -> list[int]:
        """By which `publish` numbered the next notifications."""
        return [frame["data"]["n"] for frame in await self.notifications(count)]


@contextlib.asynccontextmanager
async def v1_tab(
    service: ServiceProcess, user: str, cursor: str | None = None
) -> AsyncIterator[Tab]:
    """A tab that has been welcomed."""
    async with service.connect(user, subprotocols=[V1], cursor=cursor, max_size=None) as connection:
        welcome = json.loads(await connection.recv())
        assert welcome["type"] == "welcome"
        yield Tab(connection, welcome)


async def publish(
    publisher: RedisClient, user: str, numbers: Iterable[int], **options: Any
) -> list[NotificationId]:
    """Publish one durable notification for each number; their ids."""
    notifications = [
        Notification(user_id=user, event_type="batch_status_updated", data={"n": n}, **options)
        for n in numbers
    ]
    ids: list[NotificationId] = []
    for start in range(0, len(notifications), _IN_ONE_ROUND_TRIP):
        receipts = await publisher.publish_notifications(
            notifications[start : start + _IN_ONE_ROUND_TRIP]
        )
        ids += [receipt.id for receipt in receipts if receipt.id is not None]
    return ids
