"""The task that brings a user's publications to one connection."""

import asyncio
from collections.abc import AsyncIterator

from redis.exceptions import RedisError

from huleedu_service_libs.logging_utils import create_service_logger
from huleedu_service_libs.redis_subscriptions import SubscriptionOverflowError
from services.websocket_service.close_reasons import SLOW_CONSUMER, TRY_LATER, CloseReason
from services.websocket_service.connection import Connection
from services.websocket_service.frames import Dialect
from services.websocket_service.hub import ConnectionHub
from services.websocket_service.outbox import OutboundFrame
from services.websocket_service.publication import Publication

logger = create_service_logger(__name__)


class MessageListener:
    """Takes from a subscription and offers to an outbox, in order, without waiting for writes."""

    def __init__(self, hub: ConnectionHub) -> None:
        self._hub = hub

    async def listen(self, connection: Connection, payloads: AsyncIterator[bytes]) -> CloseReason:
        try:
            async for payload in payloads:
                publication = _publication(payload)
                text = (
                    publication.text
                    if connection.dialect is Dialect.PLAIN
                    else publication.notification
                )
                if text is None:
                    self._hub.counts.undeliverable += 1
                    logger.warning(
                        "payload undeliverable",
                        dialect=connection.dialect.value,
                        payload_bytes=len(publication),
                    )
                elif not connection.outbox.offer(
                    OutboundFrame(text, len(publication), publication)
                ):
                    return SLOW_CONSUMER
        except SubscriptionOverflowError:
            return SLOW_CONSUMER
        except RedisError:
            return TRY_LATER
        # The backplane was closed in good order, which only a shutdown does.
        return TRY_LATER


def _publication(payload: bytes) -> Publication:
    if isinstance(payload, Publication):
        return payload
    publication = Publication(payload)
    publication.received_at = asyncio.get_running_loop().time()
    return publication
