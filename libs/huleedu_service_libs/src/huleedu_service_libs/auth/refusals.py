"""Why a token is refused."""

from __future__ import annotations

import enum

__all__ = ["Refusal", "RefusedTokenError"]


class Refusal(enum.Enum):
    """What a client is told: `reason` is `details.reason` of the error."""

    TOKEN_EXPIRED = ("token_expired", "Token has expired")
    MISSING_EXP = ("missing_exp", "Token missing expiration claim")
    MISSING_SUBJECT = ("missing_subject", "Token missing subject")
    INVALID_AUDIENCE = ("invalid_audience", "Invalid token audience")
    INVALID_ISSUER = ("invalid_issuer", "Invalid token issuer")
    INVALID_SIGNATURE = ("invalid_signature", "Token signature verification failed")
    INVALID_ALGORITHM = ("invalid_algorithm", "Algorithm not allowed")
    INVALID_TOKEN = ("invalid_token", "Invalid token")

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        self.message = message


class RefusedTokenError(Exception):
    """The token does not count; it is not quoted."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.reason)
        self.refusal = refusal
