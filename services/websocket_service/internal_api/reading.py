"""Histories as callers of the internal API get them."""

import orjson

from huleedu_service_libs import strict_json
from services.websocket_service.internal_api.protocols import KeptHistory


def history_json(user_id: str, found: KeptHistory) -> bytes:
    """`models.History`, with each notification to the byte as it was published.

    What is no JSON object is left out: nobody has published it through the library.
    """
    notifications = [
        {
            "id": kept.id,
            "expires_at": kept.expires_at,
            "notification": orjson.Fragment(kept.payload),
        }
        for kept in found.notifications
        if _is_object(kept.payload)
    ]
    return orjson.dumps(
        {"user_id": user_id, "notifications": notifications, "newest": found.newest}
    )


def _is_object(payload: bytes) -> bool:
    try:
        return isinstance(orjson.loads(payload), dict)
    except orjson.JSONDecodeError:
        # It also refuses numbers that are too large for a double, which are JSON all the same.
        try:
            return isinstance(strict_json.loads(payload.decode()), dict)
        except ValueError:
            return False
