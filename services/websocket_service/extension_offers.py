"""What is agreed on with a client that offers permessage-deflate; `deflate` says what it means."""

from typing import Final

from websockets.exceptions import InvalidHeader, NegotiationError
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.headers import build_extension, parse_extension

from services.websocket_service.deflate import WINDOW_BITS

_FACTORY: Final = ServerPerMessageDeflateFactory(
    server_no_context_takeover=True, client_no_context_takeover=True
)


def accepted(offers: str) -> str | None:
    """The `Sec-WebSocket-Extensions` to answer, given the client's; None where none is accepted."""
    try:
        extensions = parse_extension(offers)
    except InvalidHeader:
        return None
    for name, parameters in extensions:
        if name == _FACTORY.name:
            try:
                answer, extension = _FACTORY.process_request_params(parameters, [])
            except NegotiationError:
                continue
            if extension.local_max_window_bits >= WINDOW_BITS:
                return build_extension([(_FACTORY.name, answer)])
    return None
