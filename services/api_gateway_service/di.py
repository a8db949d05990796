"""The one place that names concrete classes."""

import time
from collections.abc import AsyncIterator

from dishka import AsyncContainer, Provider, Scope, make_async_container, provide
from dishka.integrations.fastapi import FastapiProvider
from fastapi import Request
from opentelemetry.trace import Tracer

from huleedu_service_libs.auth import TokenVerifier
from huleedu_service_libs.error_handling.fastapi import extract_correlation_id
from huleedu_service_libs.kafka_client import KafkaBus
from huleedu_service_libs.observability import get_tracer
from huleedu_service_libs.redis_client import RedisClient
from services.api_gateway_service.authentication import Caller, authenticate
from services.api_gateway_service.circuit_breaker import CircuitBreaker
from services.api_gateway_service.config import SERVICE_NAME, Settings
from services.api_gateway_service.implementations.kafka_commands import KafkaPipelineCommands
from services.api_gateway_service.implementations.rate_limits import REDIS_RETRY_S, RateLimits
from services.api_gateway_service.implementations.result_aggregator import (
    ResultAggregator,
    result_aggregator_client,
)
from services.api_gateway_service.metrics import GatewayMetrics
from services.api_gateway_service.protocols import (
    BatchStatusProtocol,
    PipelineCommandsProtocol,
    RateLimitsProtocol,
    TokensProtocol,
)


class GatewayProvider(Provider):
    """What lives as long as the process."""

    scope = Scope.APP

    def __init__(self, settings: Settings, metrics: GatewayMetrics) -> None:
        super().__init__()
        self._settings = settings
        self._metrics = metrics

    @provide
    def settings(self) -> Settings:
        return self._settings

    @provide
    def tracer(self) -> Tracer:
        return get_tracer(SERVICE_NAME)

    @provide
    def metrics(self) -> GatewayMetrics:
        return self._metrics

    @provide
    async def tokens(self, settings: Settings) -> AsyncIterator[TokensProtocol]:
        async with TokenVerifier(settings, service=SERVICE_NAME) as verifier:
            yield verifier

    @provide
    async def commands(
        self, settings: Settings, tracer: Tracer, metrics: GatewayMetrics
    ) -> AsyncIterator[PipelineCommandsProtocol]:
        async with KafkaBus(
            client_id=SERVICE_NAME,
            bootstrap_servers=settings.KAFKA_BOOTSTRAP_SERVERS,
            connection=settings.kafka_connection,
            timeout_s=settings.KAFKA_PUBLISH_TIMEOUT_SECONDS,
        ) as bus:
            metrics.kafka_connected.set_function(lambda: bus.connected)
            yield KafkaPipelineCommands(bus, tracer, metrics)

    @provide
    async def redis_client(self, settings: Settings) -> AsyncIterator[RedisClient]:
        async with RedisClient(
            client_id=SERVICE_NAME,
            redis_url=settings.REDIS_URL,
            timeout_s=settings.REDIS_TIMEOUT_SECONDS,
        ) as client:
            yield client

    @provide
    def rate_limits(
        self, settings: Settings, client: RedisClient, metrics: GatewayMetrics
    ) -> RateLimitsProtocol:
        return RateLimits(
            client,
            CircuitBreaker(failures_to_open=1, recovery_s=REDIS_RETRY_S, clock=time.monotonic),
            metrics,
            limit=settings.RATE_LIMIT_REQUESTS,
            window_s=settings.RATE_LIMIT_WINDOW,
        )

    @provide
    async def batch_status(
        self, settings: Settings, tracer: Tracer, metrics: GatewayMetrics
    ) -> AsyncIterator[BatchStatusProtocol]:
        key = settings.INTERNAL_API_KEY
        async with result_aggregator_client(
            timeout_s=settings.HTTP_CLIENT_TIMEOUT_SECONDS,
            connect_timeout_s=settings.HTTP_CLIENT_CONNECT_TIMEOUT_SECONDS,
        ) as client:
            yield ResultAggregator(
                client,
                CircuitBreaker(
                    failures_to_open=settings.CIRCUIT_BREAKER_FAILURES,
                    recovery_s=settings.CIRCUIT_BREAKER_RECOVERY_SECONDS,
                    clock=time.monotonic,
                ),
                metrics,
                tracer,
                base_url=settings.RESULT_AGGREGATOR_URL,
                api_key=key.get_secret_value() if key else None,
                timeout_s=settings.HTTP_CLIENT_TIMEOUT_SECONDS,
            )


class RequestProvider(Provider):
    """What lives as long as a request."""

    scope = Scope.REQUEST

    @provide
    async def caller(self, request: Request, tokens: TokensProtocol) -> Caller:
        return await authenticate(
            tokens, request.headers.getlist("authorization"), extract_correlation_id(request)
        )


def create_container(
    settings: Settings, metrics: GatewayMetrics, *replacements: Provider
) -> AsyncContainer:
    """Everything that the routes ask for; what `replacements` provide counts instead."""
    return make_async_container(
        GatewayProvider(settings, metrics), RequestProvider(), FastapiProvider(), *replacements
    )
