"""The gateway as an ASGI application."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Final

from dishka import Provider
from dishka.integrations.starlette import ContainerMiddleware
from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from huleedu_service_libs.error_handling import CORRELATION_ID_HEADER
from huleedu_service_libs.error_handling.fastapi import register_error_handlers
from huleedu_service_libs.logging_utils import configure_service_logging, create_service_logger
from huleedu_service_libs.middleware.correlation import CorrelationIdMiddleware
from huleedu_service_libs.middleware.http_metrics import HttpMetricsMiddleware
from huleedu_service_libs.middleware.request_spans import RequestSpans
from huleedu_service_libs.observability import init_tracing, shutdown_tracing
from services.api_gateway_service.config import SERVICE_NAME, Settings
from services.api_gateway_service.di import create_container
from services.api_gateway_service.error_counts import ErrorCounts
from services.api_gateway_service.lingering_close import LingeringClose
from services.api_gateway_service.loop_containers import LoopContainers
from services.api_gateway_service.metrics import GatewayMetrics, process_registry
from services.api_gateway_service.plain_http import PlainHttp
from services.api_gateway_service.protocols import (
    BatchStatusProtocol,
    PipelineCommandsProtocol,
    RateLimitsProtocol,
    TokensProtocol,
)
from services.api_gateway_service.request_size import RequestSizeLimit
from services.api_gateway_service.response_headers import ResponseHeaders
from services.api_gateway_service.routers import (
    former_routes,
    health_routes,
    metrics_routes,
    pipeline_routes,
    status_routes,
)

logger = create_service_logger(__name__)

_TITLE: Final = "API Gateway Service"
_DESCRIPTION: Final = (
    "Clients give commands here and ask how far they are. What comes of a command is told over the "
    "WebSocket service. Every error has the same body, and every response the correlation id in "
    "X-Correlation-ID: the request's where that has one, a UUID, else a new one."
)
# What a page may send and read besides what every browser lets it.
_CORS_REQUEST_HEADERS: Final = (
    *("Authorization", "Content-Type", CORRELATION_ID_HEADER),
    *("traceparent", "tracestate"),
)
_CORS_RESPONSE_HEADERS: Final = (
    *(CORRELATION_ID_HEADER, "Retry-After", "WWW-Authenticate"),
    *("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"),
)


def create_app(settings: Settings, *replacements: Provider) -> FastAPI:
    """The ASGI application; its resources open with the server and close with it.

    Tests replace what stands behind a protocol.
    """
    configure_service_logging(SERVICE_NAME, settings.ENVIRONMENT, settings.LOG_LEVEL)
    metrics = GatewayMetrics(process_registry())
    containers = LoopContainers(lambda: create_container(settings, metrics, *replacements))
    app = FastAPI(
        # In snake case, it is the service's name in errors.
        title=_TITLE,
        version="1",
        description=_DESCRIPTION,
        # Those pages load their scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # FastAPI's own spans have the query in them, where old clients put tokens.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        lifespan=_lifespan(settings, containers),
        middleware=_middlewares(settings, metrics),
    )
    app.state.dishka_container = containers
    register_error_handlers(app)
    for routes in (pipeline_routes, status_routes, health_routes, metrics_routes, former_routes):
        app.include_router(routes.router)
    return app


def _middlewares(settings: Settings, metrics: GatewayMetrics) -> list[Middleware]:
    """From the outside in; the handlers of errors are inside of all of them."""
    tracing = [Middleware(RequestSpans)] if settings.ENABLE_TRACING else []
    return [
        Middleware(PlainHttp),
        Middleware(LingeringClose),
        *tracing,
        Middleware(CorrelationIdMiddleware),
        Middleware(HttpMetricsMiddleware, registry=metrics.registry, prefix="gateway"),
        Middleware(ErrorCounts, errors=metrics.api_errors),
        # Outside of whatever refuses: a page can read only what says that it may.
        Middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_credentials=settings.CORS_ALLOW_CREDENTIALS,
            allow_methods=("GET", "POST"),
            allow_headers=_CORS_REQUEST_HEADERS,
            expose_headers=_CORS_RESPONSE_HEADERS,
        ),
        Middleware(ResponseHeaders),
        Middleware(RequestSizeLimit, max_bytes=settings.MAX_REQUEST_BYTES),
        Middleware(ContainerMiddleware),
    ]


def _lifespan(
    settings: Settings, containers: LoopContainers
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as resources:
            if settings.ENABLE_TRACING:
                init_tracing(SERVICE_NAME)
                resources.callback(shutdown_tracing)
            container = containers.current()
            resources.push_async_callback(containers.close)
            # Opened before the first request. None of them waits for what it connects to.
            await container.get(TokensProtocol)
            await container.get(RateLimitsProtocol)
            await container.get(PipelineCommandsProtocol)
            await container.get(BatchStatusProtocol)
            logger.info("service started")
            yield
        logger.info("service stopped")

    return lifespan
