"""Opens subscription connections to the servers of an address."""

import asyncio

from huleedu_service_libs.redis_address import Endpoint, RedisAddress
from huleedu_service_libs.redis_subscription_connection import (
    Deliver,
    PubSub,
    SubscriptionConnection,
    Withdraw,
)


class SubscriptionDialer:
    """Connects over TCP, TLS or a Unix socket, and with the credentials, that the address has."""

    def __init__(self, address: RedisAddress, *, client_name: str) -> None:
        self._address = address
        self._client_name = client_name
        # Reads certificates once, not for each connection.
        self._tls = address.tls_context()

    async def dial(
        self, endpoint: Endpoint | None, kind: PubSub, deliver: Deliver, withdraw: Withdraw
    ) -> SubscriptionConnection:
        """A connection with its handshake done; without an endpoint over the Unix socket.

        Raises OSError or redis-py's exceptions. Has no time limit of its own.
        """
        loop = asyncio.get_running_loop()
        connection = SubscriptionConnection(kind, deliver, withdraw)
        if endpoint is None:
            await loop.create_unix_connection(lambda: connection, self._address.path)
        else:
            await loop.create_connection(
                lambda: connection, endpoint.host, endpoint.port, ssl=self._tls
            )
        try:
            await connection.handshake(self._address.credentials, self._client_name)
        except BaseException:
            await connection.close()
            raise
        return connection
