"""What happens before the first request and after the last."""

import gc
from contextlib import AsyncExitStack

from dishka import AsyncContainer
from quart import Quart

from huleedu_service_libs.logging_utils import create_service_logger
from huleedu_service_libs.observability import init_tracing, shutdown_tracing
from services.websocket_service import hypercorn_tuning
from services.websocket_service.bridge.local_bridge import LocalBridge
from services.websocket_service.config import Settings
from services.websocket_service.descriptors import allow_connections
from services.websocket_service.hub import ConnectionHub
from services.websocket_service.session import SessionServer

logger = create_service_logger(__name__)


class Lifespan:
    """Opens the container's resources with the server and closes them with it."""

    def __init__(self, settings: Settings, container: AsyncContainer) -> None:
        self._settings = settings
        self._container = container
        self._resources = AsyncExitStack()

    def register(self, app: Quart) -> None:
        """Hook into the application's start and end, and into the server's shutdown."""
        if self._settings.HYPERCORN_TUNING:
            hypercorn_tuning.install(
                max_message_bytes=self._settings.WEBSOCKET_MAX_MESSAGE_BYTES,
                user_timeout_s=self._settings.WEBSOCKET_WRITE_TIMEOUT,
                compression=self._settings.WEBSOCKET_COMPRESSION,
            )
        app.before_serving(self.start)
        app.after_serving(self.stop)

    async def start(self) -> None:
        """Raises what keeps the service from working; Redis being away does not."""
        if self._settings.ENABLE_TRACING:
            init_tracing(self._settings.SERVICE_NAME)
            self._resources.callback(shutdown_tracing)
        self._resources.push_async_callback(self._container.close)
        await self._container.get(SessionServer)
        await self._container.get(LocalBridge)
        hypercorn_tuning.before_shutdown(self.drain)
        _collect_garbage_less_often()
        self._allow_connections()
        logger.info("service started")

    def _allow_connections(self) -> None:
        wanted = self._settings.WEBSOCKET_MAX_CONNECTIONS
        room = allow_connections(wanted)
        if room < wanted:
            logger.warning(
                "too few file descriptors: raise the limit (ulimit -Hn, LimitNOFILE, ulimits) or "
                "lower WEBSOCKET_MAX_CONNECTIONS",
                room_for_connections=room,
                max_connections=wanted,
            )

    async def drain(self) -> None:
        """Tell every client to come back later, and wait until they have gone."""
        hub = await self._container.get(ConnectionHub)
        if hub.draining:
            return
        logger.info("draining", connections=hub.statistics().connections)
        await hub.drain(timeout_s=self._settings.longest_drain_s)

    async def stop(self) -> None:
        """Under a server that told us nothing before, the drain comes now."""
        await self.drain()
        await self._resources.aclose()
        logger.info("service stopped")


class BridgeLifespan:
    """The same for a process that is a bridge and nothing else."""

    def __init__(self, settings: Settings, container: AsyncContainer) -> None:
        self._settings = settings
        self._container = container
        self._resources = AsyncExitStack()

    def register(self, app: Quart) -> None:
        """Hook into the application's start and end."""
        app.before_serving(self.start)
        app.after_serving(self.stop)

    async def start(self) -> None:
        """Kafka or Redis being away keeps nothing from starting."""
        if self._settings.ENABLE_TRACING:
            init_tracing(self._settings.SERVICE_NAME)
            self._resources.callback(shutdown_tracing)
        self._resources.push_async_callback(self._container.close)
        await self._container.get(LocalBridge)
        logger.info(
            "bridge started",
            kafka=self._settings.KAFKA_BOOTSTRAP_SERVERS,
            group=self._settings.KAFKA_CONSUMER_GROUP,
        )

    async def stop(self) -> None:
        """What is in flight is published and committed."""
        await self._resources.aclose()
        logger.info("bridge stopped")


def _collect_garbage_less_often() -> None:
    """Let connections that stay be looked through less often.

    With Python's own thresholds a storm of 2,000 connections spends more than half of its CPU time
    in the collector. What has been made by now stays for good.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
