"""What is known of the keys at one moment."""

from dataclasses import dataclass

__all__ = ["KeyStatistics"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyStatistics:
    """Counts are since the beginning; of keys that are not fetched, `age_s` is None."""

    keys: int
    age_s: float | None = None
    """Seconds since the key set was last fetched; None before, and where there is none."""
    fetches_succeeded: int = 0
    fetches_failed: int = 0
