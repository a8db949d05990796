"""Publishing from a terminal."""

from huleedu_service_libs.error_handling import HuleEduError
from huleedu_service_libs.notifications import Notification, NotificationReceipt
from services.websocket_service.cli.output import CliError
from services.websocket_service.cli.redis_access import redis_client
from services.websocket_service.cli.target import Backplane

# Of `notify`, by the field that the library finds fault with.
_OPTIONS = {
    "user_id": "--user",
    "event_type": "--event",
    "data": "--data",
    "idempotency_key": "--idempotency-key",
    "collapse_key": "--collapse-key",
    "expires_in_s": "--expires-in",
    "correlation_id": "--correlation-id",
}


async def publish(backplane: Backplane, notification: Notification) -> NotificationReceipt:
    """Raises CliError if Redis is away or the notification can't be published."""
    async with redis_client(backplane) as redis:
        try:
            return await redis.publish_notification(notification)
        except HuleEduError as error:
            detail = error.error_detail
            raise CliError(
                f"correct {_OPTIONS[detail.details['field']]}: {detail.message}"
            ) from None
