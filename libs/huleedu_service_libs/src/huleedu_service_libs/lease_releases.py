"""Releases that Redis has not confirmed."""

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

MAX_RELEASES: Final = 50_000
"""About 15 MB. Leases that nobody renews lapse by themselves."""


class Release(NamedTuple):
    """`in_doubt` where a call that was sent earlier might bring the lease back."""

    in_doubt: bool
    lapses_at: float
    """The event loop's time in seconds at which the lease has lapsed in any case."""


class UnconfirmedReleases:
    """They are repeated until Redis has confirmed them, or the lease has lapsed."""

    def __init__(self) -> None:
        self._of_users: dict[str, dict[str, Release]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        """The users."""
        return iter(list(self._of_users))

    def of_user(self, user_id: str) -> Mapping[str, Release]:
        """By connection id, oldest first."""
        return self._of_users.get(user_id, {})

    def add(self, user_id: str, connection_id: str, release: Release) -> bool:
        """False where there are too many already."""
        if self._count >= MAX_RELEASES:
            return False
        releases = self._of_users.setdefault(user_id, {})
        self._count += connection_id not in releases
        releases[connection_id] = release
        return True

    def confirm(self, user_id: str, connection_id: str) -> None:
        """Forget it; nothing happens where that is done already."""
        releases = self._of_users.get(user_id, {})
        if releases.pop(connection_id, None) is not None:
            self._count -= 1
            if not releases:
                del self._of_users[user_id]

    def forget_lapsed(self, now: float) -> None:
        """Forget those that there is nothing left to release of."""
        for user_id, releases in list(self._of_users.items()):
            for connection_id, release in list(releases.items()):
                if release.lapses_at <= now:
                    self.confirm(user_id, connection_id)
