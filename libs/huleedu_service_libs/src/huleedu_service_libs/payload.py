class Payload(bytes):
    """The bytes as published, one object for all subscribers of the channel.

    `received_at` is the event loop's time in seconds at which the reader had it.
    """

    received_at: float


class Gap(Payload):
    """Stands between payloads where others may be missing: Redis was lost and is heard again."""
