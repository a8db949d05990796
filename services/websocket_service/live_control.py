"""What other processes say about connections that are open here."""

import asyncio

from huleedu_service_libs.connection_control import Disconnect
from huleedu_service_libs.revocation_list import Revocation, RevocationList
from services.websocket_service.close_reasons import DISCONNECTED, MOVED, TOKEN_REVOKED
from services.websocket_service.connection import Connection, ConnectionId, UserId
from services.websocket_service.hub import ConnectionHub


class LiveControl:
    """Ends connections whose token was revoked, and those that an operator wants to end."""

    def __init__(self, hub: ConnectionHub) -> None:
        self._hub = hub
        self._revoked = RevocationList()

    def on_revoked(self, revocation: Revocation) -> None:
        """End those that were admitted with a token which counts no more, in this turn or the next.

        All connections are looked through for tokens, so those of one turn share it: after an
        outage there may be thousands.
        """
        if not len(self._revoked):
            asyncio.get_running_loop().call_soon(self._end_revoked)
        self._revoked.add(revocation)

    def _end_revoked(self) -> None:
        revoked, self._revoked = self._revoked, RevocationList()
        for connection in self._hub.connections():
            if revoked.covers(connection.claims):
                connection.close(TOKEN_REVOKED)

    def on_disconnect(self, message: Disconnect) -> None:
        """End a user's connections, or one of them."""
        for connection in self._meant(message):
            connection.close(MOVED if message.reconnect else DISCONNECTED)

    def _meant(self, message: Disconnect) -> tuple[Connection, ...]:
        if message.connection_id is None:
            return self._hub.connections_of(UserId(message.user_id or ""))
        connection = self._hub.connection(ConnectionId(message.connection_id))
        if connection is None or message.user_id not in {None, connection.user_id}:
            return ()
        return (connection,)
