"""Revocations in Redis: what identity services call when a token must count no more.

What always holds:

1. A revocation is kept and announced in one step: a process that is told later than it reads the
   list, or reads it later than it is told, knows.
2. Nothing that is said afterwards makes an earlier revocation weaker: the later expiry stands, and
   of a user's the latest moment.
3. The list shrinks by itself: each addition removes what has expired, and the last ends its key.

They lie in one sorted set, scored by when they expire, in microseconds. A member is a JSON object
without what the score tells: `{"token_id"}`, or `{"user_id", "kept_us"}`, where the moment before
which tokens were issued lies so long before the expiry. That is the retention and whole days, so
that a newer one of the same user takes the older one's place. What somebody else has put there is
passed over.
"""

import json
import logging
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from string import Template
from typing import Any, Final

from common_core.timestamps import utc_now
from huleedu_service_libs import strict_json
from huleedu_service_libs.bounded_ids import check_bounded_id, is_bounded_id
from huleedu_service_libs.connection_control import Revoked, encode
from huleedu_service_libs.epoch_microseconds import epoch_us, moment_at
from huleedu_service_libs.error_handling import raise_validation_error
from huleedu_service_libs.protocols import AtomicRedisClientProtocol
from huleedu_service_libs.redis_channels import (
    DEFAULT_CHANNEL_PREFIX,
    control_channel,
    revocations_key,
)
from huleedu_service_libs.redis_scripts import Script, ScriptCall
from huleedu_service_libs.revocation_list import KEPT_PAST_EXPIRY, Revocation, RevocationList

__all__ = ["MAX_CLOCK_DIFFERENCE", "MAX_EXPIRY", "Revocation", "TokenRevocations"]

logger = logging.getLogger(__name__)

MAX_EXPIRY: Final = timedelta(days=10 * 365)
"""Whoever means a later moment has most likely mistaken milliseconds for seconds."""
MAX_CLOCK_DIFFERENCE: Final = timedelta(minutes=1)
"""So much later than now may `issued_before` be. Later still, and the user could not sign in until
then."""

_EARLIEST: Final = datetime(1970, 1, 1, tzinfo=UTC)
_KEPT_PAST_EXPIRY_S: Final = KEPT_PAST_EXPIRY // timedelta(seconds=1)
_DAY: Final = timedelta(days=1)
_LONGEST_KEPT_S: Final = (MAX_EXPIRY + timedelta(days=2)) // timedelta(seconds=1)
# So many take Redis less than a millisecond. Each addition adds one, so this keeps up.
_MAX_TRIMMED: Final = 1000
# KEYS: the list. ARGV: member, score, message, channel, and 1 where it is announced in any case.
_ADD: Final = f"""
local revocations, call = KEYS[1], redis.call
local known = call('ZSCORE', revocations, ARGV[1])
local is_new = not known or tonumber(known) < tonumber(ARGV[2])
if is_new then call('ZADD', revocations, ARGV[2], ARGV[1]) end

local now = call('TIME')
local expired = call('ZCOUNT', revocations, '-inf', (now[1] - {_KEPT_PAST_EXPIRY_S}) * 1e6)
if expired > 0 then
  call('ZREMRANGEBYRANK', revocations, 0, math.min(expired, {_MAX_TRIMMED}) - 1)
end
-- Nobody means that late: it would be kept for ever, and the rest with it.
call('ZREMRANGEBYSCORE', revocations, (now[1] + {_LONGEST_KEPT_S}) * 1e6, '+inf')
local latest = call('ZREVRANGE', revocations, 0, 0, 'WITHSCORES')
if latest[2] then
  call('EXPIREAT', revocations, math.ceil(latest[2] / 1e6) + {_KEPT_PAST_EXPIRY_S})
end

if is_new or ARGV[5] == '1' then call('$publish_command', ARGV[4], ARGV[3]) end
"""
# So many take Redis a millisecond, in which it serves nobody else.
_RESTORED_AT_ONCE: Final = 64
# So many take a reader 2 ms.
_READ: Final = Script("return redis.call('ZSCAN', KEYS[1], ARGV[1], 'COUNT', 250)")


class TokenRevocations:
    """Revokes tokens, and tells which are revoked.

    All services of an installation share `channel_prefix`. `retention_s` is at least as long as
    the longest token lives. `service` is named in errors. Every call raises redis-py's own
    exceptions; repeat what has failed, doing it twice is harmless.
    """

    def __init__(
        self,
        client: AtomicRedisClientProtocol,
        *,
        channel_prefix: str = DEFAULT_CHANNEL_PREFIX,
        retention_s: float,
        service: str = "token_revocations",
    ) -> None:
        if not 0 < retention_s <= MAX_EXPIRY.total_seconds():
            raise ValueError(f"retention_s must be in 0 < s <= {MAX_EXPIRY.total_seconds():.0f}")
        self._client = client
        self._key = revocations_key(channel_prefix)
        self._channel = control_channel(channel_prefix)
        self._retention = timedelta(seconds=retention_s)
        self._service = service
        self._scripts: dict[str, Script] = {}

    async def revoke_token(
        self, token_id: str, *, expires_at: datetime | None = None
    ) -> Revocation:
        """The token with this `jti` counts no more; `expires_at` is its `exp`, if that is known.

        One that has passed counts as unknown: a clock or a unit may be wrong, and somebody wants
        the token refused. Raises HuleEduError (VALIDATION_ERROR, `details.field`).
        """
        operation = "revoke_token"
        check_bounded_id(token_id, field="token_id", service=self._service, operation=operation)
        now = utc_now()
        if expires_at is not None:
            self._check_moment(operation, "expires_at", expires_at, at_most_from_now=MAX_EXPIRY)
        if expires_at is None or expires_at <= now:
            expires_at = now + self._retention
        revocation = Revocation(token_id=token_id, expires_at=expires_at.astimezone(UTC))
        await self._add(revocation)
        return revocation

    async def revoke_user(
        self, user_id: str, *, issued_before: datetime | None = None
    ) -> Revocation:
        """No token of the user that was issued before that moment counts any more.

        Without one, before now. It is kept for the retention from now at least, however long ago
        that moment is. Raises HuleEduError (VALIDATION_ERROR, `details.field`).
        """
        operation = "revoke_user"
        check_bounded_id(user_id, field="user_id", service=self._service, operation=operation)
        now = utc_now()
        if issued_before is None:
            issued_before = now
        self._check_moment(
            operation, "issued_before", issued_before, at_most_from_now=MAX_CLOCK_DIFFERENCE
        )
        issued_before = issued_before.astimezone(UTC)
        # Rounded up; 0 for a moment that is still to come.
        days_ago = -((issued_before - now) // _DAY)
        revocation = Revocation(
            user_id=user_id,
            issued_before=issued_before,
            expires_at=issued_before + days_ago * _DAY + self._retention,
        )
        await self._add(revocation)
        return revocation

    async def restore(self, known: RevocationList) -> int:
        """Keep again what is known and Redis has lost; of how many tokens or users that was.

        They are announced again, for those who have started since.
        """
        kept = RevocationList()
        async for page in self.pages():
            for revocation in page:
                kept.add(revocation)
        lost = [revocation for revocation in known.revocations() if kept.add(revocation)]
        script = await self._adding()
        for start in range(0, len(lost), _RESTORED_AT_ONCE):
            some = lost[start : start + _RESTORED_AT_ONCE]
            calls = [self._call(script, revocation, is_news=False) for revocation in some]
            for reply in await self._client.run_scripts(calls):
                if isinstance(reply, Exception):
                    raise reply
        return len(lost)

    async def all(self) -> list[Revocation]:
        """Every one that is kept, in no order; also some that have expired.

        One that is made meanwhile may be missing: subscribe to the control channel first.
        """
        return list({revocation: None async for page in self.pages() for revocation in page})

    async def pages(self) -> AsyncGenerator[list[Revocation], None]:
        """The same, a few at a time and some of them twice: of very many, none holds others up."""
        foreign_bytes = 0
        cursor = b"0"
        while True:
            cursor, flat = await self._client.run_script(_READ, [self._key], [cursor])
            page: list[Revocation] = []
            for member, score in zip(flat[::2], flat[1::2], strict=True):
                revocation = _revocation(member, score)
                if revocation is None:
                    foreign_bytes += len(member)
                else:
                    page.append(revocation)
            yield page
            if cursor == b"0":
                break
        if foreign_bytes:
            logger.warning("%d bytes in %s are no revocations", foreign_bytes, self._key)

    async def _add(self, revocation: Revocation) -> None:
        call = self._call(await self._adding(), revocation, is_news=True)
        await self._client.run_script(call.script, call.keys, call.args)

    def _call(self, script: Script, revocation: Revocation, *, is_news: bool) -> ScriptCall:
        said = encode(Revoked(revocation))
        expires_at_us = epoch_us(revocation.expires_at)
        return ScriptCall(
            script,
            [self._key],
            [_member(revocation), expires_at_us, said, self._channel, int(is_news)],
        )

    async def _adding(self) -> Script:
        command = await self._client.publish_command()
        if command not in self._scripts:
            self._scripts[command] = Script(Template(_ADD).substitute(publish_command=command))
        return self._scripts[command]

    def _check_moment(
        self, operation: str, field: str, moment: object, *, at_most_from_now: timedelta
    ) -> None:
        # Callers need not be type-checked.
        if not isinstance(moment, datetime) or moment.utcoffset() is None:
            problem = "must be a datetime with a time zone"
        elif moment < _EARLIEST:
            problem = "is before 1970"
        elif moment - utc_now() > at_most_from_now:
            problem = f"is more than {at_most_from_now} from now"
        else:
            return
        raise_validation_error(self._service, operation, field, f"{field} {problem}", None)


def _member(revocation: Revocation) -> str:
    member: dict[str, str | int | None] = {"token_id": revocation.token_id}
    if revocation.issued_before is not None:
        kept_us = epoch_us(revocation.expires_at) - epoch_us(revocation.issued_before)
        member = {"user_id": revocation.user_id, "kept_us": kept_us}
    return json.dumps(member, ensure_ascii=False, separators=(",", ":"))


def _revocation(member: bytes, score: bytes) -> Revocation | None:
    """None for what is none."""
    try:
        fields: Any = strict_json.loads(member)
        expires_at_us = int(score)
        match fields:
            case {"token_id": token_id} if is_bounded_id(token_id):
                return Revocation(token_id=token_id, expires_at=moment_at(expires_at_us))
            case {"user_id": user_id, "kept_us": int(kept_us)} if is_bounded_id(user_id):
                return Revocation(
                    user_id=user_id,
                    issued_before=moment_at(expires_at_us - kept_us),
                    expires_at=moment_at(expires_at_us),
                )
            case _:
                return None
    except (ValueError, OverflowError):
        return None
