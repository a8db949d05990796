"""Who calls the internal API, and whether they may."""

import hashlib
import hmac
import re
from typing import Final

from pydantic import SecretStr

from services.websocket_service.redaction import REDACTED

SERVICE_ID_HEADER: Final = "X-Service-ID"
# A header's value has no blanks around it.
SERVICE_ID_PATTERN: Final = r"^[!-~]([ -~]{0,62}[!-~])?$"

_SERVICE_ID: Final = re.compile(SERVICE_ID_PATTERN)


class ApiKey:
    """The key that callers have to know. Nothing of it is shown."""

    __slots__ = ("_digest",)

    def __init__(self, key: SecretStr) -> None:
        self._digest = _digest(key.get_secret_value().encode())

    def matches(self, presented: bytes) -> bool:
        """Takes as long for one guess as for another: of digests, it tells nothing of the key."""
        return hmac.compare_digest(_digest(presented), self._digest)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def is_service_id(text: str) -> bool:
    """True for 1 to 64 printable ASCII characters without a blank at either end.

    False where a token has been taken out of it: whoever sent that has mixed up its headers.
    """
    return _SERVICE_ID.fullmatch(text) is not None and REDACTED.decode() not in text
