"""From what callers want published to notifications, and from what became of these to results."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from pydantic import ValidationError

from common_core.error_enums import ErrorCode
from huleedu_service_libs.error_handling import HuleEduError, public_error_body
from huleedu_service_libs.error_handling.public_error import public_validation_errors
from huleedu_service_libs.notifications import Notification, NotificationReceipt
from services.websocket_service.internal_api.models import (
    Failed,
    ItemError,
    NotificationToPublish,
    Published,
    Refused,
    Result,
)
from services.websocket_service.internal_api.protocols import Outcome, PublisherProtocol


async def publish_each(
    publisher: PublisherProtocol,
    items: Sequence[NotificationToPublish | Any],
    *,
    source_service: str,
    correlation_id: UUID,
) -> list[Result]:
    """Publish in one go; a result for each item, in order.

    `source_service` and `correlation_id` are for items that have none.
    """
    results: dict[int, Result] = {}
    notifications: dict[int, Notification] = {}
    for index, item in enumerate(items):
        try:
            wanted = NotificationToPublish.model_validate(item)
        except ValidationError as error:
            results[index] = _refused(error)
        else:
            notifications[index] = Notification(
                user_id=wanted.user_id,
                event_type=wanted.event_type,
                data=wanted.data,
                durable=wanted.durable,
                idempotency_key=wanted.idempotency_key,
                collapse_key=wanted.collapse_key,
                expires_in_s=wanted.expires_in_s,
                correlation_id=wanted.correlation_id or correlation_id,
                source_service=wanted.source_service or source_service,
            )
    outcomes = await publisher.publish_each(list(notifications.values()))
    results |= zip(notifications, map(_result, outcomes), strict=True)
    return [results[index] for index in range(len(items))]


def _refused(error: ValidationError) -> Refused:
    problems = public_validation_errors(error.errors(include_url=False))
    return Refused(
        error=ItemError(
            code=ErrorCode.VALIDATION_ERROR.value,
            message=problems[0]["message"],
            details={"validation_errors": [{**problem} for problem in problems]},
        )
    )


def _result(outcome: Outcome) -> Result:
    match outcome:
        case NotificationReceipt():
            return Published(
                id=outcome.id, receivers=outcome.receivers, duplicate=outcome.duplicate
            )
        case HuleEduError():
            error = public_error_body(outcome.error_detail)["error"]
            return Refused(
                error=ItemError(
                    code=error["code"], message=error["message"], details=error["details"]
                )
            )
        case _:
            return Failed(
                error=ItemError(
                    code=ErrorCode.CONNECTION_ERROR.value,
                    message="Redis has not confirmed it: it may have been published. With an "
                    "idempotency key it can be repeated safely",
                    details={"target": "redis", "may_be_published": True},
                )
            )
