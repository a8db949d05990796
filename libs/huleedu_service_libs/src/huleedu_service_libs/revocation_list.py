"""Which tokens count no more, in memory."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from huleedu_service_libs.auth.jwt_validation import JWTClaims

KEPT_PAST_EXPIRY: Final = timedelta(minutes=10)
"""Clocks differ, and who verifies a token may allow a leeway: until both are surely over, a token
that is expired by one clock is still taken by another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """Of one token, or of all tokens of a user that were issued before a moment.

    Has either `token_id`, or `user_id` with `issued_before`; anything else is a ValueError.
    """

    user_id: str | None = None
    token_id: str | None = None
    """The token's `jti`."""
    issued_before: datetime | None = None
    expires_at: datetime
    """By then no such token is valid any more."""

    def __post_init__(self) -> None:
        is_of_user = self.user_id is not None and self.issued_before is not None
        is_of_token = self.token_id is not None
        is_mixed = is_of_token and (self.user_id is not None or self.issued_before is not None)
        if is_mixed or not (is_of_token or is_of_user):
            raise ValueError("a revocation has a token_id, or a user_id with issued_before")


class RevocationList:
    """Revocations that are known; a check costs the same however many there are."""

    def __init__(self) -> None:
        self._tokens: dict[str, datetime] = {}
        """When each revocation expires."""
        self._users: dict[str, tuple[datetime, datetime]] = {}
        """Issued before, and when that expires."""

    def __len__(self) -> int:
        return len(self._tokens) + len(self._users)

    def add(self, revocation: Revocation) -> bool:
        """Take it over; True where it covers tokens that were not covered before.

        Of a user's revocations the one with the latest `issued_before` stands for all.
        """
        expires_at = revocation.expires_at
        if revocation.token_id is not None:
            known_until = self._tokens.get(revocation.token_id)
            self._tokens[revocation.token_id] = max(expires_at, known_until or expires_at)
            return known_until is None
        if revocation.user_id is None or revocation.issued_before is None:
            return False
        known = self._users.get(revocation.user_id)
        issued_before = revocation.issued_before
        if known is None:
            self._users[revocation.user_id] = (issued_before, expires_at)
            return True
        self._users[revocation.user_id] = (max(issued_before, known[0]), max(expires_at, known[1]))
        return issued_before > known[0]

    def revocations(self) -> list[Revocation]:
        """All that are known, a user's as one."""
        tokens = [Revocation(token_id=id_, expires_at=end) for id_, end in self._tokens.items()]
        users = [
            Revocation(user_id=id_, issued_before=moment, expires_at=end)
            for id_, (moment, end) in self._users.items()
        ]
        return tokens + users

    def covers(self, claims: JWTClaims) -> bool:
        """True for a revoked token; of a revoked user also for one that does not say its age."""
        if claims.token_id is not None and claims.token_id in self._tokens:
            return True
        known = self._users.get(claims.subject)
        return known is not None and (claims.issued_at is None or claims.issued_at < known[0])

    def forget(self, now: datetime) -> None:
        """Drop what has been expired for `KEPT_PAST_EXPIRY`."""
        oldest = now - KEPT_PAST_EXPIRY
        self._tokens = {id_: until for id_, until in self._tokens.items() if until > oldest}
        self._users = {id_: known for id_, known in self._users.items() if known[1] > oldest}
