"""Where Kafka is, and how to get in."""

import re
import ssl
from dataclasses import dataclass, field
from typing import Any, Final, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = ["KafkaConnection", "KafkaSettings"]

SECURITY_PROTOCOLS: Final = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
SASL_MECHANISMS: Final = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
MAX_PORT: Final = 65535

# A name, an IPv4 address, or an IPv6 address in brackets.
_HOST_AND_PORT: Final = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})")


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaConnection:
    """What any Kafka client needs to connect.

    `bootstrap_servers` is `host:port,host:port`: some brokers, which name the others. Raises
    ValueError for what can't work; the message names the variable of `KafkaSettings`.
    """

    bootstrap_servers: str
    security_protocol: str = "PLAINTEXT"
    """One of `SECURITY_PROTOCOLS`."""
    sasl_mechanism: str | None = None
    """One of `SASL_MECHANISMS`."""
    sasl_username: str | None = None
    sasl_password: str | None = field(default=None, repr=False)
    ssl_ca_file: str | None = None
    """PEM certificates that sign the brokers'; without it, those that the system trusts."""

    def __post_init__(self) -> None:
        for server in self.bootstrap_servers.split(","):
            match = _HOST_AND_PORT.fullmatch(server.strip())
            if match is None or not 0 < int(match[1]) <= MAX_PORT:
                raise ValueError(
                    f"KAFKA_BOOTSTRAP_SERVERS has {server!r}, expected host:port,host:port"
                )
        if self.security_protocol not in SECURITY_PROTOCOLS:
            raise ValueError(
                f"KAFKA_SECURITY_PROTOCOL is {self.security_protocol!r}, expected one of "
                + ", ".join(SECURITY_PROTOCOLS)
            )
        if self.uses_sasl:
            self._check_credentials()
        elif self.sasl_mechanism or self.sasl_username or self.sasl_password:
            raise ValueError(
                "KAFKA_SASL_* is set, and KAFKA_SECURITY_PROTOCOL is "
                f"{self.security_protocol}, which sends no credentials"
            )
        if self.uses_tls:
            self._tls_context()
        elif self.ssl_ca_file:
            raise ValueError(
                "KAFKA_SSL_CAFILE is set, and KAFKA_SECURITY_PROTOCOL is "
                f"{self.security_protocol}, which encrypts nothing"
            )

    @property
    def uses_tls(self) -> bool:
        """Whether connections are encrypted."""
        return self.security_protocol in {"SSL", "SASL_SSL"}

    @property
    def uses_sasl(self) -> bool:
        """Whether the client tells a name and a password."""
        return self.security_protocol in {"SASL_PLAINTEXT", "SASL_SSL"}

    def client_options(self) -> dict[str, Any]:
        """Keyword arguments for aiokafka's clients: producer, consumer, admin client."""
        options: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap_servers,
            "security_protocol": self.security_protocol,
        }
        if self.uses_tls:
            options["ssl_context"] = self._tls_context()
        if self.uses_sasl:
            options |= {
                "sasl_mechanism": self.sasl_mechanism,
                "sasl_plain_username": self.sasl_username,
                "sasl_plain_password": self.sasl_password,
            }
        return options

    def _check_credentials(self) -> None:
        if self.sasl_mechanism not in SASL_MECHANISMS:
            raise ValueError(
                f"KAFKA_SASL_MECHANISM is {self.sasl_mechanism!r}, "
                f"{self.security_protocol} needs one of " + ", ".join(SASL_MECHANISMS)
            )
        for name, value in (
            ("KAFKA_SASL_USERNAME", self.sasl_username),
            ("KAFKA_SASL_PASSWORD", self.sasl_password),
        ):
            if not value:
                raise ValueError(f"{name} is missing, {self.security_protocol} needs it")

    def _tls_context(self) -> ssl.SSLContext:
        try:
            return ssl.create_default_context(cafile=self.ssl_ca_file)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise ValueError(
                f"KAFKA_SSL_CAFILE {self.ssl_ca_file!r} can't be used: {error}"
            ) from error


class KafkaSettings(BaseSettings):
    """Mix-in for a service's settings; a service's own `env_prefix` applies.

    An empty variable counts as unset. Settings that can't work raise pydantic's ValidationError,
    which says why and does not show their values.
    """

    model_config = SettingsConfigDict(
        env_ignore_empty=True, extra="ignore", hide_input_in_errors=True
    )

    KAFKA_BOOTSTRAP_SERVERS: str = Field(
        default="", description="`host:port,host:port`; empty: no Kafka"
    )
    KAFKA_SECURITY_PROTOCOL: str = Field(
        default="PLAINTEXT", description="PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL"
    )
    KAFKA_SASL_MECHANISM: str | None = Field(
        default=None, description="PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512"
    )
    KAFKA_SASL_USERNAME: str | None = None
    KAFKA_SASL_PASSWORD: SecretStr | None = None
    KAFKA_SSL_CAFILE: str | None = Field(
        default=None,
        description="PEM file of the certificates that sign the brokers'; empty: the system's",
    )

    @model_validator(mode="after")
    def _connection_can_work(self) -> Self:
        _ = self.kafka_connection
        return self

    @property
    def kafka_connection(self) -> KafkaConnection | None:
        """What Kafka's clients need; None where there is no Kafka."""
        if not self.KAFKA_BOOTSTRAP_SERVERS:
            return None
        password = self.KAFKA_SASL_PASSWORD
        return KafkaConnection(
            bootstrap_servers=self.KAFKA_BOOTSTRAP_SERVERS,
            security_protocol=self.KAFKA_SECURITY_PROTOCOL,
            sasl_mechanism=self.KAFKA_SASL_MECHANISM,
            sasl_username=self.KAFKA_SASL_USERNAME,
            sasl_password=None if password is None else password.get_secret_value(),
            ssl_ca_file=self.KAFKA_SSL_CAFILE,
        )
