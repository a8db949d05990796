"""Settings of the API gateway, read from the environment and from `.env`."""

import json
import re
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_core import ErrorDetails, PydanticCustomError
from pydantic_settings import (
    DotEnvSettingsSource,
    EnvSettingsSource,
    NoDecode,
    SettingsConfigDict,
)

from huleedu_service_libs.auth.jwt_settings import JWTValidationSettings
from huleedu_service_libs.auth.key_server_url import is_exposed_url, is_web_address
from huleedu_service_libs.auth.weak_secrets import weakness
from huleedu_service_libs.kafka_settings import KafkaSettings
from huleedu_service_libs.redis_address import RedisAddress
from huleedu_service_libs.unknown_variables import report_unknown

SERVICE_NAME: Final = "api_gateway_service"
ANY_ORIGIN: Final = "*"
_PREFIX: Final = "API_GATEWAY_"
_API_KEY: Final = f"{_PREFIX}INTERNAL_API_KEY"
# Kubernetes makes these up for Services called api-gateway and api-gateway-service; the last one is
# for Compose.
_OTHERS: Final = tuple(_PREFIX + rest for rest in ("SERVICE_", "PORT", "PUBLISHED_PORT"))

Port = Annotated[int, Field(ge=0, le=65535)]
PositiveInt = Annotated[int, Field(gt=0)]
PositiveSeconds = Annotated[float, Field(gt=0)]


class InvalidSettingsError(Exception):
    """The gateway can't run with these settings; `problems` has one sentence for each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class Settings(JWTValidationSettings, KafkaSettings):
    """Every setting with its default; units are in the descriptions.

    Variables have the prefix API_GATEWAY_, save JWT_* and ENVIRONMENT, which the platform shares.
    """

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, env_file=".env", env_ignore_empty=True, extra="ignore"
    )

    ENVIRONMENT: Literal["development", "testing", "staging", "production"] = Field(
        default="development", validation_alias="ENVIRONMENT"
    )
    LOG_LEVEL: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "INFO"
    ENABLE_TRACING: bool = Field(
        default=True, description="Spans are made, and exported if an OTLP endpoint is configured"
    )

    HTTP_PORT: Port = Field(default=4001, description="TCP port of `api-gateway-service`")
    MAX_REQUEST_BYTES: PositiveInt = Field(
        default=65_536, description="Bytes of a request's body; above it: 413"
    )
    SHUTDOWN_TIMEOUT_SECONDS: PositiveSeconds = Field(
        default=25, description="Seconds that requests in flight have at a shutdown"
    )

    KAFKA_BOOTSTRAP_SERVERS: str = Field(
        default="kafka:9092", description="Kafka's `host:port`, or several with commas"
    )
    KAFKA_PUBLISH_TIMEOUT_SECONDS: PositiveSeconds = Field(
        default=5, description="Seconds that Kafka has to acknowledge a command; then 503"
    )

    RESULT_AGGREGATOR_URL: str = Field(
        default="http://result_aggregator_service:4003",
        description="Base URL of the service that knows how far batches are",
    )
    INTERNAL_API_KEY: SecretStr | None = Field(
        default=None, description="What the result aggregator gets in X-Internal-API-Key"
    )
    HTTP_CLIENT_TIMEOUT_SECONDS: PositiveSeconds = Field(
        default=30, description="Seconds that the result aggregator has for its whole answer"
    )
    HTTP_CLIENT_CONNECT_TIMEOUT_SECONDS: PositiveSeconds = Field(
        default=10, description="Seconds that a connection to it may take"
    )
    CIRCUIT_BREAKER_FAILURES: PositiveInt = Field(
        default=5, description="Failed calls in a row after which it is left alone for a while"
    )
    CIRCUIT_BREAKER_RECOVERY_SECONDS: PositiveSeconds = Field(
        default=30, description="Seconds until it is tried again"
    )

    RATE_LIMIT_REQUESTS: PositiveInt = Field(
        default=100, description="Requests of one user in a window; above it: 429"
    )
    RATE_LIMIT_WINDOW: PositiveInt = Field(default=60, description="Seconds of a window")
    REDIS_URL: str = Field(
        default="redis://redis:6379",
        description="Where requests are counted: redis://, rediss:// or unix://; "
        "redis+sentinel:// or redis+cluster://",
    )
    REDIS_TIMEOUT_SECONDS: PositiveSeconds = Field(
        default=1, description="Seconds until an unanswered Redis counts as away"
    )

    CORS_ORIGINS: Annotated[list[str], NoDecode] = Field(
        default_factory=list,
        description="Origins whose pages may read answers, a JSON list; empty: any (not in "
        "production)",
    )
    CORS_ALLOW_CREDENTIALS: bool = Field(
        default=False, description="Let pages send cookies along, which nobody here reads"
    )

    @field_validator("CORS_ORIGINS", mode="before")
    @classmethod
    def _decoded(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except ValueError:
            raise PydanticCustomError(
                "json_list", 'should be a JSON list, for example ["https://app.example.org"]'
            ) from None

    @field_validator("CORS_ORIGINS")
    @classmethod
    def _are_origins(cls, origins: list[str]) -> list[str]:
        for origin in origins:
            if origin != ANY_ORIGIN and not _is_origin(origin):
                raise PydanticCustomError(
                    "origin",
                    "should have origins as browsers send them: https://app.example.org, in lower "
                    "case, without a path",
                )
        return origins

    @field_validator("RESULT_AGGREGATOR_URL")
    @classmethod
    def _is_base_url(cls, url: str) -> str:
        parts = urlsplit(url) if is_web_address(url) else None
        if parts is None or parts.query or parts.fragment or parts.username is not None:
            raise PydanticCustomError(
                "base_url", "should be an http or https address, without a query or a password"
            )
        return url.rstrip("/")

    @field_validator("REDIS_URL")
    @classmethod
    def _is_redis_url(cls, url: str) -> str:
        try:
            RedisAddress.parse(url)
        except ValueError:
            # Its own words may quote what could be a password.
            raise PydanticCustomError("redis_url", "should be the URL of a Redis server") from None
        return url

    @property
    def is_production(self) -> bool:
        """True where insecure settings stop the start."""
        return self.ENVIRONMENT == "production"

    @property
    def allowed_origins(self) -> list[str]:
        """For CORS; `*` stands for any."""
        return self.CORS_ORIGINS or [ANY_ORIGIN]

    def problems(self) -> list[str]:
        """One sentence for each setting that is good enough for anything but production."""
        found = [f"{self.key_problem}: without it every client is refused"] * bool(self.key_problem)
        found += [
            f"{variable} {why}"
            for variable, secret in self._secrets().items()
            if (why := weakness(secret))
        ]
        found += self._shared_secrets()
        if self.JWT_JWKS_URL and is_exposed_url(self.JWT_JWKS_URL):
            found.append(
                "JWT_JWKS_URL is not https: whoever is on the way can put in keys of their own"
            )
        if self.INTERNAL_API_KEY is None:
            found.append(f"{_API_KEY} is not set: the result aggregator will refuse every question")
        if ANY_ORIGIN in self.allowed_origins:
            found.append(
                f"{_PREFIX}CORS_ORIGINS lets pages of any origin read answers: set it to the JSON "
                'list of origins that may, for example ["https://app.example.org"]'
            )
        return found

    def _shared_secrets(self) -> list[str]:
        secrets = self._secrets()
        api_key = secrets.pop(_API_KEY, None)
        return [
            f"{_API_KEY} is the same as {variable}: the result aggregator could sign tokens"
            for variable, secret in secrets.items()
            if secret == api_key
        ]

    def _secrets(self) -> dict[str, str]:
        secrets = {
            "JWT_SECRET_KEY": self.JWT_SECRET_KEY,
            "JWT_SECRET_KEY_PREVIOUS": self.JWT_SECRET_KEY_PREVIOUS,
            _API_KEY: self.INTERNAL_API_KEY,
        }
        return {name: secret.get_secret_value() for name, secret in secrets.items() if secret}


def load_settings() -> tuple[Settings, list[str]]:
    """The settings, and one sentence for each problem that they can be used with.

    Raises InvalidSettingsError if a value is invalid, and in production for every problem but a
    variable that is no setting.
    """
    try:
        settings = Settings()
    except ValidationError as error:
        raise InvalidSettingsError(
            [_sentence(detail) for detail in error.errors(include_input=False, include_url=False)]
        ) from None
    problems, unknown = settings.problems(), _unknown()
    if problems and settings.is_production:
        # What is missing may be there under another name.
        raise InvalidSettingsError(problems + unknown)
    return settings, problems + unknown


def _unknown() -> list[str]:
    sources = (EnvSettingsSource(Settings), DotEnvSettingsSource(Settings))
    return report_unknown(
        {variable.upper() for source in sources for variable in source.env_vars},
        {_variable(name) for name in Settings.model_fields},
        prefix=_PREFIX,
        others=_OTHERS,
    )


def _variable(name: str) -> str:
    """The variable of a setting: those that the platform shares have no prefix."""
    return name if Settings.model_fields[name].validation_alias is not None else _PREFIX + name


def _sentence(detail: ErrorDetails) -> str:
    """Without the value: it may be a secret, or have one in it."""
    expected = detail["msg"].removeprefix("Input ").removeprefix("Value error, ")
    if not detail["loc"]:
        # About several variables. The library knows nothing of our prefix.
        return re.sub(r"\bKAFKA_", f"{_PREFIX}KAFKA_", expected)
    name = str(detail["loc"][0])
    variable = _variable(name) if name in Settings.model_fields else name
    place = "".join(f"[{part}]" for part in detail["loc"][1:])
    return f"{variable}{place} {expected}"


def _is_origin(text: str) -> bool:
    if not is_web_address(text) or text != text.lower():
        return False
    parts = urlsplit(text)
    return text == f"{parts.scheme}://{parts.netloc}" and parts.username is None
