"""The one place that names concrete classes."""

import time
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

from common_core.event_enums import ProcessingEvent, topic_name
from common_core.timestamps import utc_now
from huleedu_service_libs.auth import TokenVerifier
from huleedu_service_libs.connection_control import ConnectionControl
from huleedu_service_libs.connection_leases import ConnectionLeases
from huleedu_service_libs.observability import exports_spans, get_tracer
from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.tickets import TicketStore
from huleedu_service_libs.token_revocations import TokenRevocations
from services.websocket_service.address_limits import AddressLimits
from services.websocket_service.admission import AdmissionPolicy
from services.websocket_service.bridge.bridge import Bridge
from services.websocket_service.bridge.local_bridge import LocalBridge
from services.websocket_service.bridge.relay import Relay
from services.websocket_service.bridge.statistics import BridgeCounts
from services.websocket_service.client_address import TrustedProxies
from services.websocket_service.config import Settings
from services.websocket_service.exchange import ExchangeTerms, SessionLimits
from services.websocket_service.hub import ConnectionHub, HubLimits
from services.websocket_service.implementations.backplane import RedisBackplane
from services.websocket_service.implementations.connection_places import ConnectionPlaces
from services.websocket_service.implementations.control_listener import ControlListener
from services.websocket_service.implementations.internal_control import (
    LeasedPresence,
    RedisDisconnecting,
    RedisRevoking,
)
from services.websocket_service.implementations.internal_publishing import (
    RedisKeptHistory,
    RedisPublisher,
)
from services.websocket_service.implementations.jwt_validator import JWTValidator
from services.websocket_service.implementations.kafka_dead_letters import KafkaDeadLetters
from services.websocket_service.implementations.kafka_events import Subscription, joined_group
from services.websocket_service.implementations.message_listener import MessageListener
from services.websocket_service.implementations.ticket_office import TicketOffice
from services.websocket_service.internal_api.authentication import ApiKey
from services.websocket_service.internal_api.protocols import (
    DisconnectingProtocol,
    KeptHistoryProtocol,
    PresenceProtocol,
    PublisherProtocol,
    RevokingProtocol,
)
from services.websocket_service.keeper import ConnectionKeeper, KeeperIntervals
from services.websocket_service.live_control import LiveControl
from services.websocket_service.metrics import BridgeCollector, OwnMetrics, ServiceCollector
from services.websocket_service.origins import AllowedOrigins
from services.websocket_service.protocols import (
    BackplaneHealthProtocol,
    BackplaneProtocol,
    JWTValidatorProtocol,
    LeasesProtocol,
    MessageListenerProtocol,
    MetricsProtocol,
    RevocationsProtocol,
    TicketsProtocol,
)
from services.websocket_service.publication import Publication
from services.websocket_service.rate_limit import TokenBucket
from services.websocket_service.session import SessionServer
from services.websocket_service.workers.supervisor_link import SupervisorLink

# Batches of reads, pages of histories, a ping and a canary.
MAX_COMMAND_CONNECTIONS = 8


class SharedProvider(Provider):
    """What the service needs, and the bridge where it is a process of its own."""

    scope = Scope.APP

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._settings = settings

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
    async def local_bridge(
        self, settings: Settings, client: RedisClient, tracer: Tracer
    ) -> AsyncIterator[LocalBridge]:
        connection = settings.kafka_connection
        if connection is None:
            yield LocalBridge(None)
            return
        client_id = f"{settings.SERVICE_NAME}.bridge"
        subscription = Subscription(
            topic=topic_name(ProcessingEvent.TEACHER_NOTIFICATION_REQUESTED),
            group=settings.KAFKA_CONSUMER_GROUP,
            client_id=client_id,
        )
        counts = BridgeCounts()
        async with (
            KafkaDeadLetters(
                connection, settings.KAFKA_DEAD_LETTER_TOPIC, client_id=client_id
            ) as dead_letters,
            Bridge(
                partial(joined_group, connection, subscription),
                Relay(
                    RedisPublisher(client),
                    dead_letters,
                    counts,
                    tracer,
                    idempotency_ttl_s=settings.NOTIFICATION_IDEMPOTENCY_TTL,
                ),
                counts,
            ) as bridge,
        ):
            yield LocalBridge(bridge)


class ServiceProvider(Provider):
    """What lives as long as a process with WebSockets."""

    scope = Scope.APP

    def __init__(self, supervisor: SupervisorLink | None) -> None:
        super().__init__()
        self._supervisor = supervisor

    @provide
    def hub(self, settings: Settings) -> ConnectionHub:
        return ConnectionHub(
            HubLimits(
                max_connections=settings.WEBSOCKET_MAX_CONNECTIONS,
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
                expiry_notice_s=settings.WEBSOCKET_TOKEN_EXPIRY_NOTICE,
                grace_period_s=settings.WEBSOCKET_TOKEN_GRACE_PERIOD,
                leeway_s=settings.JWT_LEEWAY_SECONDS,
            ),
            utc_now=utc_now,
        )

    @provide
    async def verifier(self, settings: Settings) -> AsyncIterator[TokenVerifier]:
        async with TokenVerifier(settings, service=settings.SERVICE_NAME) as verifier:
            yield verifier

    @provide
    def validator(self, verifier: TokenVerifier) -> JWTValidatorProtocol:
        return JWTValidator(verifier)

    @provide
    def origins(self, settings: Settings) -> AllowedOrigins:
        return AllowedOrigins(
            settings.CORS_ORIGINS, allow_missing=settings.WEBSOCKET_ALLOW_MISSING_ORIGIN
        )

    @provide
    def proxies(self, settings: Settings) -> TrustedProxies:
        return TrustedProxies(settings.WEBSOCKET_TRUSTED_PROXIES)

    @provide
    def addresses(self, settings: Settings) -> AddressLimits:
        return AddressLimits(
            rate=settings.WEBSOCKET_ADDRESS_HANDSHAKES_PER_SECOND,
            burst=settings.WEBSOCKET_ADDRESS_HANDSHAKE_BURST,
            clock=time.monotonic,
        )

    @provide
    def admission(
        self,
        settings: Settings,
        hub: ConnectionHub,
        addresses: AddressLimits,
        origins: AllowedOrigins,
    ) -> AdmissionPolicy:
        return AdmissionPolicy(
            service=settings.SERVICE_NAME,
            hub=hub,
            handshakes=TokenBucket(
                rate=settings.WEBSOCKET_MAX_HANDSHAKES_PER_SECOND,
                burst=settings.WEBSOCKET_HANDSHAKE_BURST,
                clock=time.monotonic,
            ),
            addresses=addresses,
            origins=origins,
        )

    @provide
    async def connection_leases(
        self, settings: Settings, client: RedisClient
    ) -> AsyncIterator[ConnectionLeases]:
        async with ConnectionLeases(
            client,
            channel_prefix=settings.REDIS_CHANNEL_PREFIX,
            duration_s=settings.WEBSOCKET_LEASE_DURATION,
            timeout_s=settings.REDIS_TIMEOUT,
        ) as leases:
            yield leases

    @provide
    def places(
        self, settings: Settings, leases: ConnectionLeases, control: ConnectionControl
    ) -> LeasesProtocol:
        return ConnectionPlaces(leases, control, settings.WEBSOCKET_MAX_CONNECTIONS_PER_USER)

    @provide
    def tickets(self, settings: Settings, client: RedisClient) -> TicketsProtocol:
        return TicketOffice(
            TicketStore(
                client,
                channel_prefix=settings.REDIS_CHANNEL_PREFIX,
                lifetime_s=settings.WEBSOCKET_TICKET_LIFETIME,
                leeway_s=settings.JWT_LEEWAY_SECONDS,
            )
        )

    @provide
    def connection_control(self, settings: Settings, client: RedisClient) -> ConnectionControl:
        return ConnectionControl(client, channel_prefix=settings.REDIS_CHANNEL_PREFIX)

    @provide
    def token_revocations(self, settings: Settings, client: RedisClient) -> TokenRevocations:
        return TokenRevocations(
            client,
            channel_prefix=settings.REDIS_CHANNEL_PREFIX,
            retention_s=settings.WEBSOCKET_REVOCATION_RETENTION,
            service=settings.SERVICE_NAME,
        )

    @provide
    async def revocations(
        self,
        settings: Settings,
        backplane: BackplaneProtocol,
        health: BackplaneHealthProtocol,
        control: ConnectionControl,
        revocations: TokenRevocations,
        leases: ConnectionLeases,
        hub: ConnectionHub,
    ) -> AsyncIterator[RevocationsProtocol]:
        live = LiveControl(hub)
        async with ControlListener(
            backplane,
            health,
            control.channel,
            revocations,
            on_revoked=live.on_revoked,
            on_disconnect=live.on_disconnect,
            on_confirm=leases.renew_now,
            patience_s=settings.REDIS_TIMEOUT,
        ) as listener:
            yield listener

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
        validator: JWTValidatorProtocol,
        revocations: RevocationsProtocol,
        tracer: Tracer,
    ) -> ExchangeTerms:
        return ExchangeTerms(
            service=settings.SERVICE_NAME,
            limits=limits,
            hub=hub,
            listener=listener,
            validator=validator,
            revocations=revocations,
            tracer=tracer,
        )

    @provide
    def sessions(
        self,
        terms: ExchangeTerms,
        admission: AdmissionPolicy,
        leases: LeasesProtocol,
        tickets: TicketsProtocol,
        backplane: BackplaneProtocol,
        keeper: ConnectionKeeper,
    ) -> SessionServer:
        return SessionServer(
            terms=terms,
            admission=admission,
            leases=leases,
            tickets=tickets,
            backplane=backplane,
            keeper=keeper,
        )

    @provide
    def metrics_registry(
        self,
        hub: ConnectionHub,
        client: RedisClient,
        verifier: TokenVerifier,
        local_bridge: LocalBridge,
    ) -> CollectorRegistry:
        registry = _process_registry(local_bridge)
        registry.register(
            ServiceCollector(hub.statistics, client.subscription_statistics, verifier.statistics)
        )
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


class InternalApiProvider(Provider):
    """What `/internal/v1` needs; asked for only where a key is configured."""

    scope = Scope.APP

    @provide
    def api_key(self, settings: Settings) -> ApiKey:
        if settings.INTERNAL_API_KEY is None:
            raise RuntimeError("without INTERNAL_API_KEY there is no internal API")
        return ApiKey(settings.INTERNAL_API_KEY)

    @provide
    def publisher(self, client: RedisClient) -> PublisherProtocol:
        return RedisPublisher(client)

    @provide
    def kept_history(self, settings: Settings, client: RedisClient) -> KeptHistoryProtocol:
        return RedisKeptHistory(client, timeout_s=settings.REDIS_TIMEOUT)

    @provide
    def presence(self, settings: Settings, leases: ConnectionLeases) -> PresenceProtocol:
        return LeasedPresence(leases, timeout_s=settings.REDIS_TIMEOUT)

    @provide
    def disconnecting(
        self, settings: Settings, control: ConnectionControl
    ) -> DisconnectingProtocol:
        return RedisDisconnecting(control, timeout_s=settings.REDIS_TIMEOUT)

    @provide
    def revoking(self, settings: Settings, revocations: TokenRevocations) -> RevokingProtocol:
        return RedisRevoking(revocations, timeout_s=settings.REDIS_TIMEOUT)


class BridgeProvider(Provider):
    """What the bridge has where it is a process of its own, and the service has otherwise."""

    scope = Scope.APP

    @provide
    def metrics_registry(self, local_bridge: LocalBridge) -> CollectorRegistry:
        return _process_registry(local_bridge)


def _process_registry(local_bridge: LocalBridge) -> CollectorRegistry:
    registry = CollectorRegistry()
    if local_bridge.bridge is not None:
        registry.register(BridgeCollector(local_bridge.bridge.statistics))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


def create_container(
    settings: Settings, *, supervisor: SupervisorLink | None = None
) -> AsyncContainer:
    """Everything that the routes ask for; one of several workers has a supervisor."""
    return make_async_container(
        SharedProvider(settings),
        ServiceProvider(supervisor),
        InternalApiProvider(),
        QuartProvider(),
    )


def create_bridge_container(settings: Settings) -> AsyncContainer:
    """What the routes ask for of a process that is a bridge and nothing else."""
    return make_async_container(SharedProvider(settings), BridgeProvider(), QuartProvider())
