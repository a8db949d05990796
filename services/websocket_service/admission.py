"""Who may come in, as far as that can be told before it is known who it is."""

from typing import Final

from huleedu_service_libs.error_handling import (
    raise_authorization_error,
    raise_connection_error,
    raise_rate_limit_error,
)
from services.websocket_service.address_limits import AddressLimits
from services.websocket_service.hub import ConnectionHub
from services.websocket_service.origins import AllowedOrigins
from services.websocket_service.rate_limit import TokenBucket
from services.websocket_service.upgrade import Upgrade

FLOODS: Final = frozenset({"address_rate", "handshake_rate"})
"""Why those are refused of whom there may be thousands in a second."""


class AdmissionPolicy:
    """Judges handshakes by the state of this process, their address and their origin."""

    def __init__(
        self,
        *,
        service: str,
        hub: ConnectionHub,
        handshakes: TokenBucket,
        addresses: AddressLimits,
        origins: AllowedOrigins,
    ) -> None:
        self._service = service
        self._hub = hub
        self._handshakes = handshakes
        self._addresses = addresses
        self._origins = origins

    def check(self, upgrade: Upgrade) -> None:
        """What is cheapest, and concerns everybody, comes first.

        Raises HuleEduError: SERVICE_UNAVAILABLE in a drain, CONNECTION_ERROR when full or when too
        many come at once, RATE_LIMIT for an address, AUTHORIZATION_ERROR for an origin.
        """
        self._hub.check_node(upgrade.correlation_id)
        # One address must not use up what all others share.
        if upgrade.address is not None and not self._addresses.take(upgrade.address):
            raise_rate_limit_error(
                self._service,
                "admit",
                round(self._addresses.rate),
                1,
                "Too many handshakes from this address",
                upgrade.correlation_id,
                reason="address_rate",
            )
        if not self._handshakes.take():
            raise_connection_error(
                self._service,
                "admit",
                self._service,
                "Too many handshakes",
                upgrade.correlation_id,
                reason="handshake_rate",
            )
        if not self._origins.allow(upgrade.origin):
            raise_authorization_error(
                self._service,
                "check_origin",
                "Origin not allowed",
                upgrade.correlation_id,
                reason="origin_not_allowed",
            )
