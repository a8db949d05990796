from typing import Final

from dishka import AsyncContainer
from quart import Quart, request
from quart_dishka import QuartDishka

from huleedu_service_libs.error_handling.quart import register_error_handlers
from huleedu_service_libs.logging_utils import configure_service_logging
from huleedu_service_libs.middleware.request_spans import RequestSpans, name_span_after
from services.websocket_service.config import Settings
from services.websocket_service.credentials import ASGIApp, Channel, CredentialShield, Scope
from services.websocket_service.di import create_bridge_container, create_container
from services.websocket_service.internal_api.routes import serve_internal_api
from services.websocket_service.routers.bridge_routes import bridge_blueprint
from services.websocket_service.routers.health_routes import health_blueprint
from services.websocket_service.routers.metrics_routes import metrics_blueprint
from services.websocket_service.routers.ticket_routes import ticket_blueprint
from services.websocket_service.routers.websocket_routes import (
    serve_websockets,
    websocket_blueprint,
)
from services.websocket_service.startup_setup import BridgeLifespan, Lifespan

_BODY_TIMEOUT_S: Final = 10
"""For a whole body; whoever is slower is answered 408."""


def create_app(settings: Settings, container: AsyncContainer | None = None) -> Quart:
    """The ASGI application; its resources open with the server and close with it."""
    container = container or create_container(settings)
    app = _bare_app(settings)
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
    return _shielded(app, settings)


def create_bridge_app(settings: Settings) -> Quart:
    """The ASGI application of a process that is a bridge: probes and metrics."""
    container = create_bridge_container(settings)
    app = _bare_app(settings)
    app.register_blueprint(bridge_blueprint)
    QuartDishka(app, container)
    BridgeLifespan(settings, container).register(app)
    return _shielded(app, settings)


def _bare_app(settings: Settings) -> Quart:
    configure_service_logging(
        settings.SERVICE_NAME, settings.ENVIRONMENT.value, settings.LOG_LEVEL.value
    )
    app = Quart(__name__)
    app.config["SERVICE_NAME"] = settings.SERVICE_NAME
    app.config["BODY_TIMEOUT"] = _BODY_TIMEOUT_S
    # Else a path with two slashes is answered with a redirect to whatever Host the request names.
    app.url_map.merge_slashes = False
    register_error_handlers(app)
    return app


def _shielded(app: Quart, settings: Settings) -> Quart:
    asgi_app = _with_path(app.asgi_app)
    if settings.ENABLE_TRACING:
        app.before_request(_name_span)
        # Sessions make spans of their own.
        asgi_app = RequestSpans(asgi_app)
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


def _name_span() -> None:
    if request.url_rule is not None:
        name_span_after(request.method, request.url_rule.rule)
