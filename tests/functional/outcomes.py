"""What becomes of a handshake, in a word or two."""

import json
from typing import Any, Final

from tests.functional.closes import closed
from tests.service_process import ServiceProcess

V1: Final = "huleedu.notify.v1"
WELCOME: Final = "welcome"


async def outcome(service: ServiceProcess, bearer: str, **options: Any) -> str:
    """`welcome`, or why a v1 client was refused: `1008 token_expired`, `1013 CONNECTION_ERROR`."""
    async with service.connect(bearer=bearer, subprotocols=[V1], **options) as client:
        first = json.loads(await client.recv())
        if first["type"] == WELCOME:
            return WELCOME
        close = await closed(client)
    error = first["error"]
    assert close.reason["error_code"] == error["code"]
    return f"{close.code} {error['details'].get('reason', error['code'])}"
