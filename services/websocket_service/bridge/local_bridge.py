from dataclasses import dataclass

from services.websocket_service.bridge.bridge import Bridge


@dataclass(frozen=True, slots=True)
class LocalBridge:
    """The bridge of this process; None where no Kafka is configured."""

    bridge: Bridge | None

    @property
    def kafka_check(self) -> str | None:
        """A word on Kafka for `/readyz`: `ok`, what is wrong, or None where there is none."""
        if self.bridge is None:
            return None
        return "ok" if self.bridge.hears_kafka else "not heard within the last seconds"
