"""How a connection begins: where its user's history stands, and what the client has missed."""

from huleedu_service_libs.history_pages import HistoryPage, Loss, Unproven
from huleedu_service_libs.notification_ids import (
    NotificationId,
    offset_of,
    parse_notification_id,
)
from services.websocket_service.continuity import Opening
from services.websocket_service.frames import ResyncReason
from services.websocket_service.protocols import BackplaneProtocol


async def open_history(
    backplane: BackplaneProtocol, user_id: str, cursor_text: str | None
) -> Opening:
    """Find the client's place; raises BackplaneUnavailableError."""
    if cursor_text is None:
        newest = await backplane.newest(user_id)
        return Opening(newest, newest)
    cursor = parse_notification_id(cursor_text)
    if cursor is None:
        newest = await backplane.newest(user_id)
        return Opening(newest, newest, resync=ResyncReason.CURSOR_UNKNOWN)
    found = await backplane.after(user_id, cursor)
    if isinstance(found, HistoryPage):
        return Opening(cursor, found.newest, missed=found)
    newest = found.newest or await backplane.newest(user_id)
    return Opening(newest, newest, resync=resync_reason(found, cursor))


def resync_reason(found: Unproven, cursor: NotificationId) -> ResyncReason:
    """Why what followed the cursor can't be told."""
    if found.loss is Loss.TRIMMED:
        return ResyncReason.HISTORY_TRIMMED
    if found.newest is None or offset_of(found.newest) < offset_of(cursor):
        # What is there is younger than the cursor's history, which is therefore gone.
        return ResyncReason.HISTORY_LOST
    return ResyncReason.CURSOR_UNKNOWN
