from collections.abc import Iterable


class AllowedOrigins:
    """Which origins a browser may connect from; an empty list allows every one."""

    def __init__(self, origins: Iterable[str]) -> None:
        self._origins = frozenset(origin.lower().rstrip("/") for origin in origins)

    def allow(self, origin: str | None) -> bool:
        """True for a listed origin, and for none at all: only browsers send one."""
        return (
            origin is None
            or not self._origins
            or "*" in self._origins
            or origin.lower() in self._origins
        )
