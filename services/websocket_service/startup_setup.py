"""What happens before the first request and after the last."""

from contextlib import AsyncExitStack

from dishka import AsyncContainer
from quart import Quart

from huleedu_service_libs.logging_utils import create_service_logger
from huleedu_service_libs.observability import init_tracing, shutdown_tracing
from services.websocket_service import hypercorn_tuning
from services.websocket_service.config import Settings
from services.websocket_service.hub import ConnectionHub
from services.websocket_service.keeper import ConnectionKeeper
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
        hypercorn_tuning.install(max_message_bytes=self._settings.WEBSOCKET_MAX_MESSAGE_BYTES)
        app.before_serving(self.start)
        app.after_serving(self.stop)

    async def start(self) -> None:
        """Raises what keeps the service from working; Redis being away does not."""
        if self._settings.ENABLE_TRACING:
            init_tracing(self._settings.SERVICE_NAME)
            self._resources.callback(shutdown_tracing)
        self._resources.push_async_callback(self._container.close)
        await self._container.get(SessionServer)
        keeper = await self._container.get(ConnectionKeeper)
        await self._resources.enter_async_context(keeper.running())
        hypercorn_tuning.before_shutdown(self.drain)
        logger.info("service started")

    async def drain(self) -> None:
        """Tell every client to come back later, and wait until they have gone."""
        hub = await self._container.get(ConnectionHub)
        if hub.draining:
            return
        logger.info("draining", connections=hub.statistics().connections)
        # A session may have to wait for Redis, in a handshake, or for a client that reads what is
        # queued; and then for the answer to its close frame. Cut off earlier, it ends with 1006.
        close_timeout_s = self._settings.WEBSOCKET_CLOSE_TIMEOUT
        longest_wait_s = max(self._settings.REDIS_TIMEOUT, close_timeout_s)
        await hub.drain(timeout_s=longest_wait_s + close_timeout_s + 0.5)

    async def stop(self) -> None:
        """Under a server that told us nothing before, the drain comes now."""
        await self.drain()
        await self._resources.aclose()
        logger.info("service stopped")
