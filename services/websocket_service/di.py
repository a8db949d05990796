"""The one place that names concrete classes."""

from collections.abc import AsyncIterator
from functools import partial

from dishka import AsyncContainer, Provider, Scope, make_async_container, provide
from opentelemetry.trace import NoOpTracer, Tracer
from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from quart_dishka import QuartProvider

from common_core.timestamps import utc_now
from huleedu_service_libs.observability import exports_spans, get_tracer
from huleedu_service_libs.redis_client import RedisClient
from services.websocket_service.config import Settings
from services.websocket_service.exchange import ExchangeTerms, SessionLimits
from services.websocket_service.hub import ConnectionHub, HubLimits
from services.websocket_service.implementations.backplane import RedisBackplane
from services.websocket_service.implementations.jwt_validator import JWTValidator
from services.websocket_service.implementations.message_listener import MessageListener
from services.websocket_service.keeper import ConnectionKeeper, KeeperIntervals
from services.websocket_service.metrics import OwnMetrics, ServiceCollector
from services.websocket_service.origins import AllowedOrigins
from services.websocket_service.protocols import (
    BackplaneHealthProtocol,
    BackplaneProtocol,
    JWTValidatorProtocol,
    MessageListenerProtocol,
    MetricsProtocol,
)
from services.websocket_service.publication import Publication
from services.websocket_service.session import SessionServer
from services.websocket_service.workers.supervisor_link import SupervisorLink

# Batches of reads, pages of histories, a ping and a canary.
MAX_COMMAND_CONNECTIONS = 8


class ServiceProvider(Provider):
    """What lives as long as the process."""

    scope = Scope.APP

    def __init__(self, settings: Settings, supervisor: SupervisorLink | None) -> None:
        super().__init__()
        self._settings = settings
        self._supervisor = supervisor

    @provide
    def settings(self) -> Settings:
        return self._settings

    @provide
    def tracer(self, settings: Settings) -> Tracer:
        # Spans that nobody gets are a tenth of a handshake and 2 KiB of a connection.
        return get_tracer(settings.SERVICE_NAME) if exports_spans() else NoOpTracer()

    @provide
    async def redis_client(self, settings: Settings) -> AsyncIterator[RedisClient]:
        async with RedisClient(
            client_id=settings.SERVICE_NAME,
            redis_url=settings.REDIS_URL,
            channel_prefix=settings.REDIS_CHANNEL_PREFIX,
            history_limits=settings.history_limits,
            timeout_s=settings.REDIS_TIMEOUT,
            max_connections=MAX_COMMAND_CONNECTIONS,
            # What comes in one go is all there before its first frame can leave.
            max_pending_bytes=settings.WEBSOCKET_OUTBOX_MAX_BYTES,
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
                outboxes_max_bytes=settings.WEBSOCKET_OUTBOXES_MAX_BYTES,
            ),
            service=settings.SERVICE_NAME,
        )

    @provide
    def keeper(self, settings: Settings) -> ConnectionKeeper:
        return ConnectionKeeper(
            KeeperIntervals(
                ping_interval_s=settings.WEBSOCKET_PING_INTERVAL,
                idle_timeout_s=settings.WEBSOCKET_IDLE_TIMEOUT,
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
            frames_per_second=settings.WEBSOCKET_MAX_FRAMES_PER_SECOND,
            frame_burst=settings.WEBSOCKET_FRAME_BURST,
            heartbeat_s=settings.WEBSOCKET_PING_INTERVAL,
            write_timeout_s=settings.WEBSOCKET_WRITE_TIMEOUT,
            max_age_s=settings.WEBSOCKET_OUTBOX_MAX_AGE,
            close_timeout_s=settings.WEBSOCKET_CLOSE_TIMEOUT,
            retry_after_s=settings.WEBSOCKET_RETRY_AFTER,
        )

    @provide
    def exchange_terms(
        self,
        settings: Settings,
        limits: SessionLimits,
        hub: ConnectionHub,
        listener: MessageListenerProtocol,
        tracer: Tracer,
    ) -> ExchangeTerms:
        return ExchangeTerms(
            service=settings.SERVICE_NAME,
            limits=limits,
            hub=hub,
            listener=listener,
            tracer=tracer,
        )

    @provide
    def sessions(
        self,
        settings: Settings,
        terms: ExchangeTerms,
        validator: JWTValidatorProtocol,
        backplane: BackplaneProtocol,
        keeper: ConnectionKeeper,
    ) -> SessionServer:
        return SessionServer(
            terms=terms,
            origins=AllowedOrigins(settings.CORS_ORIGINS),
            validator=validator,
            backplane=backplane,
            keeper=keeper,
        )

    @provide
    def metrics_registry(self, hub: ConnectionHub, client: RedisClient) -> CollectorRegistry:
        registry = CollectorRegistry()
        registry.register(ServiceCollector(hub.statistics, client.subscription_statistics))
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        return registry

    @provide
    async def metrics(
        self, registry: CollectorRegistry, hub: ConnectionHub
    ) -> AsyncIterator[MetricsProtocol]:
        if self._supervisor is None:
            yield OwnMetrics(registry, hub)
            return
        # What it reports last, the drain has been counted, and Redis is still there to be asked.
        async with self._supervisor.serving(partial(generate_latest, registry)):
            yield self._supervisor


def create_container(
    settings: Settings, *, supervisor: SupervisorLink | None = None
) -> AsyncContainer:
    """Everything that the routes ask for; one of several workers has a supervisor."""
    return make_async_container(ServiceProvider(settings, supervisor), QuartProvider())
