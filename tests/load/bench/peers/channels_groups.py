"""Django Channels on uvicorn with channels_redis' pub/sub layer, a group for each user."""

import os

import django
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.conf import settings
from django.urls import path

from tests.load.bench.peers.bearer import user_of_header

settings.configure(
    SECRET_KEY=os.environ["JWT_SECRET_KEY"],
    ALLOWED_HOSTS=["*"],
    INSTALLED_APPS=["channels"],
    CHANNEL_LAYERS={
        "default": {
            "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
            "CONFIG": {"hosts": [os.environ["REDIS_URL"]]},
        }
    },
)
django.setup()


class Notifications(AsyncWebsocketConsumer):
    """One connection."""

    async def connect(self) -> None:
        headers = dict(self.scope["headers"])
        user = user_of_header(headers.get(b"authorization", b"").decode())
        if user is None:
            await self.close(1008)
            return
        self.group = user
        await self.channel_layer.group_add(self.group, self.channel_name)
        await self.accept()

    async def disconnect(self, code: int) -> None:  # noqa: ARG002 - Channels' signature
        await self.channel_layer.group_discard(self.group, self.channel_name)

    async def notify(self, event: dict[str, str]) -> None:
        """A message of type `notify` to the group."""
        await self.send(text_data=event["text"])


app = ProtocolTypeRouter({"websocket": URLRouter([path("ws", Notifications.as_asgi())])})
