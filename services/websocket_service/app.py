from dishka import AsyncContainer
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from quart import Quart
from quart_dishka import QuartDishka

from huleedu_service_libs.error_handling.quart import register_error_handlers
from huleedu_service_libs.logging_utils import configure_service_logging
from services.websocket_service.config import Settings
from services.websocket_service.credentials import ASGIApp, CredentialShield
from services.websocket_service.di import create_container
from services.websocket_service.routers.health_routes import health_blueprint
from services.websocket_service.routers.metrics_routes import metrics_blueprint
from services.websocket_service.routers.websocket_routes import websocket_blueprint
from services.websocket_service.startup_setup import Lifespan


def create_app(settings: Settings, container: AsyncContainer | None = None) -> Quart:
    """The ASGI application; its resources open with the server and close with it."""
    configure_service_logging(
        settings.SERVICE_NAME, settings.ENVIRONMENT.value, settings.LOG_LEVEL.value
    )
    container = container or create_container(settings)
    app = Quart(__name__)
    app.config["SERVICE_NAME"] = settings.SERVICE_NAME
    register_error_handlers(app)
    for blueprint in (websocket_blueprint, health_blueprint, metrics_blueprint):
        app.register_blueprint(blueprint)
    QuartDishka(app, container)
    Lifespan(settings, container).register(app)
    asgi_app: ASGIApp = app.asgi_app
    if settings.ENABLE_TRACING:
        # No span per frame: a connection lives for hours.
        asgi_app = OpenTelemetryMiddleware(asgi_app, exclude_spans=["receive", "send"])
    # Outermost: whatever comes after it sees no token.
    app.asgi_app = CredentialShield(asgi_app)  # type: ignore[method-assign,assignment]
    return app
