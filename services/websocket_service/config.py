"""Settings of the WebSocket service, read from the environment and from `.env`."""

from enum import StrEnum
from typing import Annotated

from pydantic import AliasChoices, Field, field_validator
from pydantic_settings import SettingsConfigDict

from huleedu_service_libs.auth.jwt_settings import JWTValidationSettings
from huleedu_service_libs.error_handling import HuleEduError
from huleedu_service_libs.notification_settings import NotificationSettings
from huleedu_service_libs.redis_address import RedisAddress

# Secrets that stand in examples and tutorials: whoever knows them can be anybody.
WELL_KNOWN_SECRETS = frozenset(
    {
        "changeme",
        "change-me",
        "default",
        "dev",
        "dev-secret",
        "development",
        "insecure",
        "jwt-secret",
        "my-secret",
        "password",
        "secret",
        "secret-key",
        "supersecret",
        "test",
        "test-secret",
        "test-secret-key",
        "your-256-bit-secret",
        "your-secret-key",
    }
)

# RFC 7518, section 3.2: as long as the hash. A shorter one can be guessed from any token.
MIN_SECRET_BYTES = 32

Port = Annotated[int, Field(ge=0, le=65535)]
PositiveInt = Annotated[int, Field(gt=0)]
PositiveSeconds = Annotated[float, Field(gt=0)]


class Environment(StrEnum):
    """Where the service runs; production refuses to start with insecure settings."""

    DEVELOPMENT = "development"
    TESTING = "testing"
    STAGING = "staging"
    PRODUCTION = "production"


class LogLevel(StrEnum):
    """Standard library level names."""

    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"
    CRITICAL = "CRITICAL"


class Settings(JWTValidationSettings, NotificationSettings):
    """Every setting with its default; units are in the descriptions."""

    model_config = SettingsConfigDict(env_file=".env", extra="ignore", populate_by_name=True)

    SERVICE_NAME: str = "websocket_service"
    ENVIRONMENT: Environment = Environment.DEVELOPMENT
    LOG_LEVEL: LogLevel = LogLevel.INFO
    ENABLE_TRACING: bool = Field(
        default=True, description="Spans are made, and exported if an OTLP endpoint is configured"
    )

    WEBSOCKET_SERVICE_PORT: Port = Field(
        default=8081,
        validation_alias=AliasChoices("WEBSOCKET_SERVICE_PORT", "WEBSOCKET_PORT"),
        description="TCP port of `websocket-service serve`",
    )
    WEBSOCKET_WORKERS: PositiveInt = Field(
        default=1, description="Processes of `websocket-service serve`"
    )
    WEBSOCKET_PING_INTERVAL: PositiveSeconds = Field(
        default=30, description="Seconds between protocol pings, and between v1 heartbeats"
    )
    WEBSOCKET_IDLE_TIMEOUT: PositiveSeconds = Field(
        default=300, description="Seconds without a byte from the peer, pongs included"
    )
    WEBSOCKET_MAX_CONNECTIONS_PER_USER: PositiveInt = Field(
        default=5, description="Connections of one user in this process"
    )
    WEBSOCKET_MAX_CONNECTIONS: PositiveInt = Field(
        default=20_000, description="Connections in this process"
    )
    WEBSOCKET_MAX_MESSAGE_BYTES: PositiveInt = Field(
        default=65_536, description="Bytes of one inbound message; above it: close 1009"
    )
    WEBSOCKET_MAX_FRAMES_PER_SECOND: PositiveInt = Field(
        default=100,
        description="Inbound frames per second and connection, sustained, pings and fragments "
        "included; above it: close 4009",
    )
    WEBSOCKET_FRAME_BURST: PositiveInt = Field(
        default=2_000, description="Inbound frames that may come at once"
    )
    WEBSOCKET_OUTBOX_MAX_BYTES: PositiveInt = Field(
        default=33_554_432, description="Bytes waiting for one connection; above it: close 4008"
    )
    WEBSOCKET_OUTBOXES_MAX_BYTES: PositiveInt = Field(
        default=268_435_456,
        description="Bytes waiting for all connections of this process; above it the fullest are "
        "closed with 4008",
    )
    WEBSOCKET_OUTBOX_MAX_FRAMES: PositiveInt = Field(
        default=20_000, description="Frames waiting for one connection; above it: close 4008"
    )
    WEBSOCKET_OUTBOX_MAX_AGE: PositiveSeconds = Field(
        default=30, description="Seconds that a frame may wait for a slow client; then close 4008"
    )
    WEBSOCKET_WRITE_TIMEOUT: PositiveSeconds = Field(
        default=20, description="Seconds in which the peer takes nothing at all; then close 4008"
    )
    WEBSOCKET_CLOSE_TIMEOUT: PositiveSeconds = Field(
        default=2, description="Seconds that the peer has to answer our close frame"
    )
    WEBSOCKET_RETRY_AFTER: PositiveSeconds = Field(
        default=2,
        description="Seconds after which a client should come back (1012, 1013), spread by half",
    )

    WEBSOCKET_COMPRESSION: bool = Field(
        default=False, description="Agree on permessage-deflate with clients that offer it"
    )
    HYPERCORN_TUNING: bool = Field(
        default=True,
        description="Under Hypercorn, write frames straight to the transport and more; without it "
        "all works, at a multiple of the cost",
    )

    REDIS_URL: str = Field(
        default="redis://redis:6379",
        description="redis://, rediss:// or unix://; redis+sentinel:// or redis+cluster://",
    )
    REDIS_CHANNEL_PREFIX: str = Field(
        default="ws", description="Channel of user U is <prefix>:U; the publishers share it"
    )
    REDIS_TIMEOUT: PositiveSeconds = Field(
        default=2, description="Seconds until an unanswered Redis counts as away"
    )

    CORS_ORIGINS: list[str] = Field(
        default_factory=list,
        description="Origins that browsers may connect from, a JSON list; empty: any (not in "
        "production)",
    )

    @field_validator("REDIS_URL")
    @classmethod
    def _is_redis_url(cls, url: str) -> str:
        RedisAddress.parse(url)
        return url

    @property
    def is_production(self) -> bool:
        """True where insecure settings stop the start."""
        return self.ENVIRONMENT is Environment.PRODUCTION

    @property
    def token_key_problem(self) -> str | None:
        """Why no token can be verified; None where they can."""
        try:
            self.get_jwt_verification_key()
        except HuleEduError as error:
            return f"{error.error_detail.message}: without it every client is refused"
        return None

    @property
    def longest_drain_s(self) -> float:
        """Seconds after which a shutdown waits for no client any more.

        A session may have to wait for Redis, in a handshake, or for a client that reads what is
        queued; and then for the answer to its close frame. Cut off earlier, it ends with 1006.
        """
        longest_wait_s = max(self.REDIS_TIMEOUT, self.WEBSOCKET_CLOSE_TIMEOUT)
        return longest_wait_s + self.WEBSOCKET_CLOSE_TIMEOUT + 0.5

    def problems(self) -> list[str]:
        """One sentence for each setting that keeps the service from doing its work safely."""
        found = [self.token_key_problem] if self.token_key_problem else []
        if self.WEBSOCKET_IDLE_TIMEOUT <= self.WEBSOCKET_PING_INTERVAL:
            found.append(
                "WEBSOCKET_IDLE_TIMEOUT must be longer than WEBSOCKET_PING_INTERVAL, or healthy "
                "connections are closed before their pong is due"
            )
        if self.is_production:
            secret = self.JWT_SECRET_KEY.get_secret_value() if self.JWT_SECRET_KEY else ""
            if secret.lower() in WELL_KNOWN_SECRETS:
                found.append(
                    "JWT_SECRET_KEY is a well-known value: set it to at least 32 random bytes"
                )
            elif secret.strip() and len(secret.encode()) < MIN_SECRET_BYTES:
                found.append(
                    f"JWT_SECRET_KEY has fewer than {MIN_SECRET_BYTES} bytes: set it to at least "
                    f"{MIN_SECRET_BYTES} random bytes"
                )
            if not self.CORS_ORIGINS:
                found.append(
                    "CORS_ORIGINS is empty: set it to the JSON list of origins that may connect, "
                    'for example ["https://app.example.org"]'
                )
        return found
