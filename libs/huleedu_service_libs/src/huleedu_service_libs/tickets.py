"""Stand-ins for tokens where only a URL can carry one: short-lived, and good for one use.

Redis holds a hash of each, so that who can read its keys can't use them.
"""

import hashlib
import json
import logging
import math
import re
import secrets
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, Final

from common_core.timestamps import utc_now
from huleedu_service_libs import strict_json
from huleedu_service_libs.auth.jwt_validation import JWTClaims
from huleedu_service_libs.issued_ticket import IssuedTicket
from huleedu_service_libs.protocols import AtomicRedisClientProtocol
from huleedu_service_libs.redis_channels import DEFAULT_CHANNEL_PREFIX, KeyName, ticket_key
from huleedu_service_libs.redis_scripts import Script

logger = logging.getLogger(__name__)

TICKET_BYTES: Final = 32
# Base64 writes six bits with a character.
_TICKET: Final = re.compile(rf"[A-Za-z0-9_-]{{{math.ceil(TICKET_BYTES * 8 / 6)}}}")
_KEEP: Final = Script("return redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])")
# GETDEL came with Redis 6.2.
_TAKE: Final = Script("""
local claims = redis.call('GET', KEYS[1])
if claims then redis.call('DEL', KEYS[1]) end
return claims
""")


class TicketStore:
    """Issues tickets for verified claims and takes them back; all raise redis-py's exceptions.

    A ticket lives for `lifetime_s` seconds, and no longer than the token that it stands for, which
    counts for `leeway_s` past its expiry (JWT_LEEWAY_SECONDS).
    """

    def __init__(
        self,
        client: AtomicRedisClientProtocol,
        *,
        channel_prefix: str = DEFAULT_CHANNEL_PREFIX,
        lifetime_s: float,
        leeway_s: float = 0,
    ) -> None:
        self._client = client
        self._channel_prefix = channel_prefix
        self._lifetime = timedelta(seconds=lifetime_s)
        self._leeway = timedelta(seconds=leeway_s)

    async def issue(self, claims: JWTClaims) -> IssuedTicket:
        """A new ticket."""
        ticket = secrets.token_urlsafe(TICKET_BYTES)
        lifetime = min(self._lifetime, self._left(claims))
        lifetime_ms = max(1, lifetime // timedelta(milliseconds=1))
        await self._client.run_script(_KEEP, [self._key(ticket)], [_encode(claims), lifetime_ms])
        return IssuedTicket(ticket, lifetime_ms)

    async def redeem(self, ticket: str) -> JWTClaims | None:
        """The claims that it was issued for, to the first who asks; of them, those with a field.

        None for one that is unknown, used or too old, or whose token has expired. Where it raises
        the ticket may be used up.
        """
        if not _TICKET.fullmatch(ticket):
            return None
        kept = await self._client.run_script(_TAKE, [self._key(ticket)], [])
        claims = None if kept is None else _parse(kept)
        return claims if claims is not None and self._left(claims) > timedelta(0) else None

    def _left(self, claims: JWTClaims) -> timedelta:
        return claims.expires_at - utc_now() + self._leeway

    def _key(self, ticket: str) -> KeyName:
        return ticket_key(hashlib.sha256(ticket.encode()).hexdigest(), self._channel_prefix)


def _encode(claims: JWTClaims) -> str:
    """As in a token. A float holds microseconds for 200 years from 1970."""
    kept = {"sub": claims.subject, "exp": claims.expires_at.timestamp()}
    if claims.issued_at is not None:
        kept["iat"] = claims.issued_at.timestamp()
    if claims.token_id is not None:
        kept["jti"] = claims.token_id
    return json.dumps(kept)


def _parse(kept: bytes) -> JWTClaims | None:
    try:
        return _claims(strict_json.loads(kept))
    except (ValueError, OverflowError):
        # Somebody else's, and the message may quote it.
        logger.warning("what is kept for a ticket can't be read: %d bytes", len(kept))
        return None


def _claims(kept: Any) -> JWTClaims:
    match kept:
        case {"sub": str(subject), "exp": float(exp)}:
            issued_at, token_id = kept.get("iat"), kept.get("jti")
            if isinstance(issued_at, float | None) and isinstance(token_id, str | None):
                return JWTClaims(
                    subject=subject,
                    expires_at=_moment(exp),
                    issued_at=None if issued_at is None else _moment(issued_at),
                    token_id=token_id,
                    raw=MappingProxyType(kept),
                )
    raise ValueError("no claims")


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
