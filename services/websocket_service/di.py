"""The one place that names concrete classes."""

from collections.abc import AsyncIterator

from dishka import AsyncContainer, Provider, Scope, make_async_container, provide
from opentelemetry.trace import Tracer
from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
)
from quart_dishka import QuartProvider

from common_core.timestamps import utc_now
from huleedu_service_libs.observability import get_tracer
from huleedu_service_libs.redis_client import RedisClient
from services.websocket_service.config import Settings
from services.websocket_service.exchange import Exchange, SessionLimits
from services.websocket_service.hub import ConnectionHub, HubLimits
from services.websocket_service.implementations.backplane import MAX_READERS, RedisBackplane
from services.websocket_service.implementations.jwt_validator import JWTValidator
from services.websocket_service.implementations.message_listener import MessageListener
from services.websocket_service.keeper import ConnectionKeeper, KeeperIntervals
from services.websocket_service.metrics import ServiceCollector
from services.websocket_service.origins import AllowedOrigins
from services.websocket_service.protocols import (
    BackplaneHealthProtocol,
    BackplaneProtocol,
    JWTValidatorProtocol,
    MessageListenerProtocol,
)
from services.websocket_service.publication import Publication
from services.websocket_service.session import SessionServer

# A ping and a canary beside the readers of histories.
MAX_COMMAND_CONNECTIONS = MAX_READERS + 2


class ServiceProvider(Provider):
    """What lives as long as the process."""

    scope = Scope.APP

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._settings = settings

    @provide
    def settings(self) -> Settings:
        return self._settings

    @provide
    def tracer(self, settings: Settings) -> Tracer:
        return get_tracer(settings.SERVICE_NAME)

    @provide
    async def redis_client(self, settings: Settings) -> AsyncIterator[RedisClient]:
        async with RedisClient(
            client_id=settings.SERVICE_NAME,
            redis_url=settings.REDIS_URL,
            channel_prefix=settings.REDIS_CHANNEL_PREFIX,
            history_limits=settings.history_limits,
            timeout_s=settings.REDIS_TIMEOUT,
            max_connections=MAX_COMMAND_CONNECTIONS,
            payload_type=Publication,
        ) as client:
            client.open_subscriptions()
            yield client

    @provide
    def redis_backplane(self, client: RedisClient) -> RedisBackplane:
        return RedisBackplane(client)

    @provide
    def backplane(self, backplane: RedisBackplane) -> BackplaneProtocol:
        return backplane

    @provide
    def backplane_health(self, backplane: RedisBackplane) -> BackplaneHealthProtocol:
        return backplane

    @provide
    def hub(self, settings: Settings) -> ConnectionHub:
        return ConnectionHub(
            HubLimits(
                max_connections=settings.WEBSOCKET_MAX_CONNECTIONS,
                max_connections_per_user=settings.WEBSOCKET_MAX_CONNECTIONS_PER_USER,
                outbox_max_bytes=settings.WEBSOCKET_OUTBOX_MAX_BYTES,
                outbox_max_frames=settings.WEBSOCKET_OUTBOX_MAX_FRAMES,
            ),
            service=settings.SERVICE_NAME,
        )

    @provide
    def keeper(self, settings: Settings, hub: ConnectionHub) -> ConnectionKeeper:
        return ConnectionKeeper(
            hub,
            KeeperIntervals(
                ping_interval_s=settings.WEBSOCKET_PING_INTERVAL,
                idle_timeout_s=settings.WEBSOCKET_IDLE_TIMEOUT,
                write_timeout_s=settings.WEBSOCKET_WRITE_TIMEOUT,
            ),
            utc_now=utc_now,
        )

    @provide
    def validator(self, settings: Settings) -> JWTValidatorProtocol:
        return JWTValidator(settings, service=settings.SERVICE_NAME)

    @provide
    def listener(self, hub: ConnectionHub, backplane: BackplaneProtocol) -> MessageListenerProtocol:
        return MessageListener(hub, backplane)

    @provide
    def session_limits(self, settings: Settings) -> SessionLimits:
        return SessionLimits(
            max_message_bytes=settings.WEBSOCKET_MAX_MESSAGE_BYTES,
            messages_per_second=settings.WEBSOCKET_MAX_MESSAGES_PER_SECOND,
            message_burst=settings.WEBSOCKET_MESSAGE_BURST,
            heartbeat_s=settings.WEBSOCKET_PING_INTERVAL,
            close_timeout_s=settings.WEBSOCKET_CLOSE_TIMEOUT,
            retry_after_s=settings.WEBSOCKET_RETRY_AFTER,
        )

    @provide
    def exchange(
        self,
        settings: Settings,
        limits: SessionLimits,
        hub: ConnectionHub,
        listener: MessageListenerProtocol,
        tracer: Tracer,
    ) -> Exchange:
        return Exchange(
            service=settings.SERVICE_NAME,
            limits=limits,
            hub=hub,
            listener=listener,
            tracer=tracer,
            utc_now=utc_now,
        )

    @provide
    def sessions(
        self,
        settings: Settings,
        limits: SessionLimits,
        validator: JWTValidatorProtocol,
        hub: ConnectionHub,
        backplane: BackplaneProtocol,
        exchange: Exchange,
        tracer: Tracer,
    ) -> SessionServer:
        return SessionServer(
            service=settings.SERVICE_NAME,
            limits=limits,
            origins=AllowedOrigins(settings.CORS_ORIGINS),
            validator=validator,
            hub=hub,
            backplane=backplane,
            exchange=exchange,
            tracer=tracer,
        )

    @provide
    def metrics_registry(self, hub: ConnectionHub, client: RedisClient) -> CollectorRegistry:
        registry = CollectorRegistry()
        registry.register(ServiceCollector(hub.statistics, client.subscription_statistics))
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        return registry


def create_container(settings: Settings) -> AsyncContainer:
    """Everything that the routes ask for."""
    return make_async_container(ServiceProvider(settings), QuartProvider())
