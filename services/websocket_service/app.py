from typing import Final

from dishka import AsyncContainer
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from quart import Quart
from quart_dishka import QuartDishka

from huleedu_service_libs.error_handling.quart import register_error_handlers
from huleedu_service_libs.logging_utils import configure_service_logging
from services.websocket_service.config import Settings
from services.websocket_service.credentials import ASGIApp, Channel, CredentialShield, Scope
from services.websocket_service.di import create_container
from services.websocket_service.internal_api.routes import serve_internal_api
from services.websocket_service.routers.health_routes import health_blueprint
from services.websocket_service.routers.metrics_routes import metrics_blueprint
from services.websocket_service.routers.ticket_routes import ticket_blueprint
from services.websocket_service.routers.websocket_routes import (
    serve_websockets,
    websocket_blueprint,
)
from services.websocket_service.startup_setup import Lifespan

_BODY_TIMEOUT_S: Final = 10
"""For a whole body; whoever is slower is answered 408."""


def create_app(settings: Settings, container: AsyncContainer | None = None) -> Quart:
    """The ASGI application; its resources open with the server and close with it."""
    configure_service_logging(
        settings.SERVICE_NAME, settings.ENVIRONMENT.value, settings.LOG_LEVEL.value
    )
    container = container or create_container(settings)
    app = Quart(__name__)
    app.config["SERVICE_NAME"] = settings.SERVICE_NAME
    app.config["BODY_TIMEOUT"] = _BODY_TIMEOUT_S
    # Else a path with two slashes is answered with a redirect to whatever Host the request names.
    app.url_map.merge_slashes = False
    register_error_handlers(app)
    for blueprint in (
        websocket_blueprint,
        ticket_blueprint,
        health_blueprint,
        metrics_blueprint,
    ):
        app.register_blueprint(blueprint)
    serve_internal_api(app, settings)
    serve_websockets(app, container)
    QuartDishka(app, container)
    Lifespan(settings, container).register(app)
    asgi_app = _with_path(app.asgi_app)
    if settings.ENABLE_TRACING:
        asgi_app = _traced_http(asgi_app)
    # Outermost: whatever comes after it sees no token.
    app.asgi_app = CredentialShield(asgi_app)  # type: ignore[method-assign,assignment]
    return app


def _with_path(app: ASGIApp) -> ASGIApp:
    """A request line may hold a query alone; Quart looks at the first character of the path."""

    async def with_path(scope: Scope, receive: Channel, send: Channel) -> None:
        if scope["type"] in {"http", "websocket"} and not scope["path"].startswith("/"):
            scope["path"] = "/" + scope["path"]
        await app(scope, receive, send)

    return with_path


def _traced_http(app: ASGIApp) -> ASGIApp:
    """A span for each HTTP request; sessions make their own."""
    traced = OpenTelemetryMiddleware(app, exclude_spans=["receive", "send"])

    async def traced_http(scope: Scope, receive: Channel, send: Channel) -> None:
        await (traced if scope["type"] == "http" else app)(scope, receive, send)

    return traced_http
