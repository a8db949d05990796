"""How much of what was published is kept, and for how long."""

from dataclasses import dataclass

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = ["HistoryLimits", "NotificationSettings"]


@dataclass(frozen=True, slots=True)
class HistoryLimits:
    """What publishing keeps for each user. All publishers of one Redis share the same."""

    size: int = 200
    """Notifications. Above a size of 100, up to 15 and a stream node (100, or 4 KiB) more."""
    ttl_s: int = 86_400
    """Seconds after the user's last notification, or up to a thousandth of them less."""
    id_retention_s: int = 30 * 86_400
    """Seconds for which the newest id is remembered; at least `ttl_s`."""
    idempotency_ttl_s: int = 86_400
    """Seconds in which a repeated idempotency key is recognised."""
    max_payload_bytes: int = 65_536
    """Bytes of one published object, without `id` and `prev`."""

    def __post_init__(self) -> None:
        if min(self.size, self.ttl_s, self.idempotency_ttl_s, self.max_payload_bytes) < 1:
            raise ValueError("history limits must be positive")
        if self.id_retention_s < self.ttl_s:
            raise ValueError("id_retention_s must be at least ttl_s: ids outlive the history")


_DEFAULTS = HistoryLimits()


class NotificationSettings(BaseSettings):
    """Mix-in for a service's settings: the limits of the history, shared by all publishers.

    As with the variables for tokens, a service's own `env_prefix` does not apply.
    """

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore")

    NOTIFICATION_HISTORY_SIZE: int = Field(
        default=_DEFAULTS.size,
        gt=0,
        validation_alias="NOTIFICATION_HISTORY_SIZE",
        description="Durable notifications kept for each user",
    )
    NOTIFICATION_HISTORY_TTL: int = Field(
        default=_DEFAULTS.ttl_s,
        gt=0,
        validation_alias="NOTIFICATION_HISTORY_TTL",
        description="Seconds for which they are kept after a user's last one",
    )
    NOTIFICATION_ID_RETENTION: int = Field(
        default=_DEFAULTS.id_retention_s,
        gt=0,
        validation_alias="NOTIFICATION_ID_RETENTION",
        description="Seconds for which a user's newest id is remembered after the history is gone",
    )
    NOTIFICATION_IDEMPOTENCY_TTL: int = Field(
        default=_DEFAULTS.idempotency_ttl_s,
        gt=0,
        validation_alias="NOTIFICATION_IDEMPOTENCY_TTL",
        description="Seconds in which a repeated idempotency key publishes nothing",
    )
    NOTIFICATION_MAX_BYTES: int = Field(
        default=_DEFAULTS.max_payload_bytes,
        gt=0,
        validation_alias="NOTIFICATION_MAX_BYTES",
        description="Bytes of one published object; above it: VALIDATION_ERROR",
    )

    @model_validator(mode="after")
    def _ids_outlive_history(self) -> "NotificationSettings":
        if self.NOTIFICATION_ID_RETENTION < self.NOTIFICATION_HISTORY_TTL:
            raise ValueError(
                "NOTIFICATION_ID_RETENTION must be at least NOTIFICATION_HISTORY_TTL: ids outlive "
                "the history"
            )
        return self

    @property
    def history_limits(self) -> HistoryLimits:
        """What `RedisClient` takes."""
        return HistoryLimits(
            size=self.NOTIFICATION_HISTORY_SIZE,
            ttl_s=self.NOTIFICATION_HISTORY_TTL,
            id_retention_s=self.NOTIFICATION_ID_RETENTION,
            idempotency_ttl_s=self.NOTIFICATION_IDEMPOTENCY_TTL,
            max_payload_bytes=self.NOTIFICATION_MAX_BYTES,
        )
