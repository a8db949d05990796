"""Settings of the WebSocket service, read from the environment and from `.env`."""

from datetime import timedelta
from enum import StrEnum
from typing import Annotated

from pydantic import AliasChoices, Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict

from common_core.event_enums import ProcessingEvent, topic_name
from huleedu_service_libs.auth.jwt_settings import JWTValidationSettings
from huleedu_service_libs.auth.key_server_url import is_exposed_url
from huleedu_service_libs.auth.weak_secrets import weakness
from huleedu_service_libs.kafka_settings import KafkaSettings
from huleedu_service_libs.notification_settings import NotificationSettings
from huleedu_service_libs.redis_address import RedisAddress
from huleedu_service_libs.token_revocations import MAX_EXPIRY
from services.websocket_service.client_address import proxy_problem
from services.websocket_service.forwarding import ProxyHeader
from services.websocket_service.origins import ANY_ORIGIN, origin_problem

DEFAULT_PORT = 8081

Port = Annotated[int, Field(ge=0, le=65535)]
PositiveInt = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(ge=0)]
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


class Settings(JWTValidationSettings, NotificationSettings, KafkaSettings):
    """Every setting with its default; units are in the descriptions."""

    model_config = SettingsConfigDict(env_file=".env", extra="ignore", populate_by_name=True)

    SERVICE_NAME: str = "websocket_service"
    ENVIRONMENT: Environment = Environment.DEVELOPMENT
    LOG_LEVEL: LogLevel = LogLevel.INFO
    ENABLE_TRACING: bool = Field(
        default=True, description="Spans are made, and exported if an OTLP endpoint is configured"
    )

    WEBSOCKET_SERVICE_PORT: Port = Field(
        default=DEFAULT_PORT,
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
        default=5, description="Connections of one user, in all processes together"
    )
    WEBSOCKET_LEASE_DURATION: float = Field(
        default=15,
        # Renewed every third of it, over the network and beside everything else.
        ge=1,
        description="Seconds for which the connections of a process that was killed still count",
    )
    WEBSOCKET_MAX_CONNECTIONS: PositiveInt = Field(
        default=20_000, description="Connections in this process"
    )
    WEBSOCKET_MAX_HANDSHAKES_PER_SECOND: PositiveInt = Field(
        default=1_000,
        description="Handshakes per second in this process, sustained; above it: close 1013",
    )
    WEBSOCKET_HANDSHAKE_BURST: PositiveInt = Field(
        default=2_000, description="Handshakes that may come to this process at once"
    )
    WEBSOCKET_ADDRESS_HANDSHAKES_PER_SECOND: PositiveInt = Field(
        default=200,
        description="Handshakes per second from one address in this process, sustained; of IPv6 "
        "the first 64 bits count; above it: close 4009",
    )
    WEBSOCKET_ADDRESS_HANDSHAKE_BURST: PositiveInt = Field(
        default=2_000, description="Handshakes that may come from one address at once"
    )
    WEBSOCKET_TRUSTED_PROXIES: list[str] = Field(
        default_factory=list,
        description="Networks whose word on the client's address is taken, a JSON list of CIDRs; "
        "`unix:` stands for peers on a Unix-domain socket",
        examples=[["10.0.0.0/8"]],
    )
    WEBSOCKET_PROXY_HEADER: ProxyHeader = Field(
        default=ProxyHeader.X_FORWARDED_FOR,
        description="The header in which those proxies write it; no other is looked at",
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

    WEBSOCKET_TOKEN_EXPIRY_NOTICE: PositiveSeconds = Field(
        default=60, description="Seconds before its token's expiry in which a v1 client is told"
    )
    WEBSOCKET_TOKEN_GRACE_PERIOD: Seconds = Field(
        default=5, description="Seconds after its token's expiry in which a v1 client may renew it"
    )
    WEBSOCKET_TICKET_LIFETIME: PositiveSeconds = Field(
        default=30, description="Seconds in which a ticket has to be used"
    )
    WEBSOCKET_REVOCATION_RETENTION: int = Field(
        default=30 * 86_400,
        ge=60,
        le=MAX_EXPIRY // timedelta(seconds=1),
        description="Seconds for which a revocation is remembered: at least as long as the longest "
        "token lives",
    )
    INTERNAL_API_KEY: SecretStr | None = Field(
        default=None,
        description="What callers of /internal/v1 send in X-Internal-API-Key; without it that API "
        "is off",
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

    KAFKA_CONSUMER_GROUP: str = Field(
        default="websocket_service.notifications",
        min_length=1,
        description="All bridges of one Redis share it: each event is for one of them",
    )
    KAFKA_DEAD_LETTER_TOPIC: str = Field(
        default="huleedu.notification.teacher.requested.v1.dead-letter",
        pattern=r"^[A-Za-z0-9._-]{1,249}$",
        description="Where events go that can't be published",
    )
    WEBSOCKET_BRIDGE_PORT: Port = Field(
        default=8082, description="TCP port of `websocket-service bridge`, for probes and metrics"
    )

    CORS_ORIGINS: list[str] = Field(
        default_factory=list,
        description="Origins that browsers may connect from, a JSON list; `https://*.example.org` "
        "stands for every subdomain; empty: any (not in production)",
        examples=[["https://app.example.org"]],
    )
    WEBSOCKET_ALLOW_MISSING_ORIGIN: bool = Field(
        default=True, description="Admit clients without an Origin header, which are no browsers"
    )

    @field_validator("WEBSOCKET_SERVICE_PORT", mode="before")
    @classmethod
    def _not_from_kubernetes(cls, port: object) -> object:
        # Where a Service is called websocket-service, each pod gets its address in this variable.
        return DEFAULT_PORT if str(port).startswith("tcp://") else port

    @field_validator("REDIS_URL")
    @classmethod
    def _is_redis_url(cls, url: str) -> str:
        RedisAddress.parse(url)
        return url

    @field_validator("KAFKA_DEAD_LETTER_TOPIC")
    @classmethod
    def _is_not_read_by_ourselves(cls, topic: str) -> str:
        if topic == topic_name(ProcessingEvent.TEACHER_NOTIFICATION_REQUESTED):
            raise ValueError("the bridge reads this topic: what it sets aside would come again")
        return topic

    @property
    def is_production(self) -> bool:
        """True where insecure settings stop the start."""
        return self.ENVIRONMENT is Environment.PRODUCTION

    @property
    def token_key_problem(self) -> str | None:
        """Why no token can be verified; None where they can, if the key server answers."""
        problem = self.key_problem
        return f"{problem}: without it every client is refused" if problem else None

    @property
    def longest_drain_s(self) -> float:
        """Seconds after which a shutdown waits for no client any more.

        A session may have to wait for Redis, in a handshake, or for a client that reads what is
        queued; and then for the answer to its close frame. Cut off earlier, it ends with 1006.
        """
        longest_wait_s = max(self.REDIS_TIMEOUT, self.WEBSOCKET_CLOSE_TIMEOUT)
        return longest_wait_s + self.WEBSOCKET_CLOSE_TIMEOUT + 0.5

    def problems(self) -> list[str]:
        """One sentence for each setting that keeps the service from doing its work safely.

        In production all of `insecurities` are among them.
        """
        found = [self.token_key_problem] if self.token_key_problem else []
        if self.WEBSOCKET_IDLE_TIMEOUT <= self.WEBSOCKET_PING_INTERVAL:
            found.append(
                "WEBSOCKET_IDLE_TIMEOUT must be longer than WEBSOCKET_PING_INTERVAL, or healthy "
                "connections are closed before their pong is due"
            )
        found += [
            f"CORS_ORIGINS has {entry!r}, which {why}"
            for entry in self.CORS_ORIGINS
            if (why := origin_problem(entry))
        ]
        found += [
            f"WEBSOCKET_TRUSTED_PROXIES has {entry!r}, which {why}"
            for entry in self.WEBSOCKET_TRUSTED_PROXIES
            if (why := proxy_problem(entry))
        ]
        return found + self.insecurities() if self.is_production else found

    def insecurities(self) -> list[str]:
        """One sentence for each setting that is good enough for anything but production."""
        found = [
            f"{variable} {why}"
            for variable, secret in self._secrets().items()
            if (why := weakness(secret))
        ]
        found += self._shared_secrets()
        if self.JWT_JWKS_URL and is_exposed_url(self.JWT_JWKS_URL):
            found.append(
                "JWT_JWKS_URL is not https: whoever is on the way can put in keys of their own"
            )
        if not self.CORS_ORIGINS:
            found.append(
                "CORS_ORIGINS is empty: set it to the JSON list of origins that may connect, "
                'for example ["https://app.example.org"]'
            )
        if ANY_ORIGIN in self.CORS_ORIGINS:
            found.append(
                "CORS_ORIGINS has '*', which lets every page connect in its visitor's name: "
                "list the origins"
            )
        return found

    def _secrets(self) -> dict[str, str]:
        """Those that are set, by variable."""
        secrets = {
            "JWT_SECRET_KEY": self.JWT_SECRET_KEY,
            "JWT_SECRET_KEY_PREVIOUS": self.JWT_SECRET_KEY_PREVIOUS,
            "INTERNAL_API_KEY": self.INTERNAL_API_KEY,
        }
        return {name: secret.get_secret_value() for name, secret in secrets.items() if secret}

    def _shared_secrets(self) -> list[str]:
        secrets = self._secrets()
        api_key = secrets.pop("INTERNAL_API_KEY", "")
        if not api_key.strip():
            return []
        return [
            f"INTERNAL_API_KEY is the same as {variable}: its callers could sign tokens"
            for variable, secret in secrets.items()
            if secret == api_key
        ]
