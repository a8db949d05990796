"""What a Redis has to be told to keep whatever it has acknowledged."""

from typing import Final

DURABLE: Final = {"appendonly": "yes", "appendfsync": "always"}
