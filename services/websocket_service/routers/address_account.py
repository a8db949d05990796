"""On whose account a request goes, as ASGI and our settings tell it."""

from collections.abc import Mapping
from typing import Any

from services.websocket_service.client_address import TrustedProxies, client_address, limit_key
from services.websocket_service.config import Settings


def address_account(
    scope: Mapping[str, Any], settings: Settings, proxies: TrustedProxies
) -> str | None:
    """The key of the client's limit; None where its address can't be known."""
    peer = scope.get("client")
    address = client_address(
        peer[0] if peer else None,
        scope["headers"],
        proxies=proxies,
        header=settings.WEBSOCKET_PROXY_HEADER,
    )
    return None if address is None else limit_key(address)
