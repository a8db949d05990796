"""What the internal API sees and says of connections and tokens, by way of the shared library."""

from collections.abc import Sequence
from datetime import datetime

from huleedu_service_libs.connection_control import ConnectionControl
from huleedu_service_libs.connection_leases import ConnectionLeases, Lease
from huleedu_service_libs.revocation_list import Revocation
from huleedu_service_libs.token_revocations import TokenRevocations
from services.websocket_service.implementations.redis_failures import redis_failures


class LeasedPresence:
    """Each call takes `timeout_s` at most."""

    def __init__(self, leases: ConnectionLeases, *, timeout_s: float) -> None:
        self._leases = leases
        self._timeout_s = timeout_s

    async def of_user(self, user_id: str) -> Sequence[Lease]:
        async with redis_failures(self._timeout_s):
            return await self._leases.of_user(user_id)

    async def users(self) -> Sequence[str]:
        async with redis_failures(self._timeout_s):
            return await self._leases.users()


class RedisDisconnecting:
    """Each call takes `timeout_s` at most."""

    def __init__(self, control: ConnectionControl, *, timeout_s: float) -> None:
        self._control = control
        self._timeout_s = timeout_s

    async def disconnect_user(self, user_id: str, *, reconnect: bool) -> None:
        async with redis_failures(self._timeout_s):
            await self._control.disconnect(user_id=user_id, reconnect=reconnect)

    async def disconnect_connection(self, connection_id: str, *, reconnect: bool) -> None:
        async with redis_failures(self._timeout_s):
            await self._control.disconnect(connection_id=connection_id, reconnect=reconnect)


class RedisRevoking:
    """Each call takes `timeout_s` at most."""

    def __init__(self, revocations: TokenRevocations, *, timeout_s: float) -> None:
        self._revocations = revocations
        self._timeout_s = timeout_s

    async def revoke_token(self, token_id: str, *, expires_at: datetime | None) -> Revocation:
        async with redis_failures(self._timeout_s):
            return await self._revocations.revoke_token(token_id, expires_at=expires_at)

    async def revoke_user(self, user_id: str, *, issued_before: datetime | None) -> Revocation:
        async with redis_failures(self._timeout_s):
            return await self._revocations.revoke_user(user_id, issued_before=issued_before)
