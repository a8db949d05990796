"""The Lua scripts behind `connection_leases`, and how they keep leases.

A sorted set holds a user's connection ids. The score is the end of the lease, in seconds of Redis'
own clock. A released id that a late call might bring back stays for one duration with its score
negated: it does not count, and neither `acquire` nor `renew` touches it. The set expires with the
last of either.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from string import Template
from typing import Final

from huleedu_service_libs.redis_channels import KeyName
from huleedu_service_libs.redis_scripts import Script, ScriptCall

_CLOCK: Final = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
"""

_KEEPING: Final = f"""
{_CLOCK}
local ends_at = string.format('%.6f', now + $duration_s)

local function drop_lapsed(key)
  redis.call('ZREMRANGEBYSCORE', key, -now, now)
end

local function expire_at(key, at_s)
  redis.call('PEXPIREAT', key, math.ceil(at_s * 1000))
end

local function expire_with_last(key)
  local last = redis.call('ZRANGE', key, -1, -1, 'WITHSCORES')[2]
  if not last then return end
  local first = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')[2]
  expire_at(key, math.max(tonumber(last), -tonumber(first)))
end

local function is_released(key, id)
  local score = redis.call('ZSCORE', key, id)
  return score and tonumber(score) < 0
end

local function release(key, first, last)
  for i = first, last, 2 do
    if ARGV[i + 1] == '1' then
      redis.call('ZADD', key, '-' .. ends_at, ARGV[i])
    else
      redis.call('ZREM', key, ARGV[i])
    end
  end
end
"""

_ACQUIRE: Final = """
local function run(key, first, last)
  local id, limit, since = ARGV[first], tonumber(ARGV[first + 1]), tonumber(ARGV[first + 2])
  local fresh_until = since > 0 and since + $duration_s or now + $fresh_s
  drop_lapsed(key)
  release(key, first + 3, last)
  local reply = 'granted'
  if is_released(key, id) then
    reply = 'released'
  elseif redis.call('ZSCORE', key, id) or redis.call('ZCOUNT', key, 0, '+inf') < limit then
    redis.call('ZADD', key, ends_at, id)
  elseif redis.call('ZCOUNT', key, fresh_until, '+inf') < limit then
    reply = 'full_for_now'
  else
    reply = 'full'
  end
  expire_with_last(key)
  return reply
end
"""

# One look at the whole set takes Redis half the time of asking for each thing that matters.
_RENEW: Final = """
local function run(key, first, last)
  local kept = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  local last_end, released, has_lapsed = tonumber(ends_at), {}, false
  for i = 1, #kept, 2 do
    local score = tonumber(kept[i + 1])
    local kept_until = math.abs(score)
    last_end = math.max(last_end, kept_until)
    if kept_until <= now then
      has_lapsed = true
    elseif score < 0 then
      released[kept[i]] = true
    end
  end
  if has_lapsed then drop_lapsed(key) end
  for i = first, last do
    if not released[ARGV[i]] then redis.call('ZADD', key, ends_at, ARGV[i]) end
  end
  expire_at(key, last_end)
  return 1
end
"""

_RELEASE: Final = """
local function run(key, first, last)
  drop_lapsed(key)
  release(key, first, last)
  expire_with_last(key)
  return 1
end
"""

_COUNT: Final = f"""
{_CLOCK}
local function run(key)
  return redis.call('ZCOUNT', key, now, '+inf')
end
"""

_ONE: Final = """
return run(KEYS[1], 2, #ARGV)
"""

# What is wrong with one user's key must not keep the others from their answer. Redis 6 throws a
# text, later ones an error reply.
_SEVERAL: Final = """
local replies, position = {}, 1
for i = 1, #KEYS do
  local last = position + ARGV[position]
  local done, reply = pcall(run, KEYS[i], position + 1, last)
  if done or type(reply) == 'table' then
    replies[i] = reply
  else
    replies[i] = {err = reply}
  end
  position = last + 1
end
return replies
"""


@dataclass(frozen=True, slots=True)
class LeaseScript:
    """What is done with one user's set, alone or for many in one call."""

    one: Script
    joint: Script

    @classmethod
    def of(cls, body: str) -> "LeaseScript":
        """From the definition of `run(key, first, last)`, which finds its arguments there."""
        return cls(Script(body + _ONE), Script(body + _SEVERAL))

    def call(self, key: KeyName, args: Sequence[str | bytes | int] = ()) -> ScriptCall:
        """A call for one user, which can be joined with others."""
        return ScriptCall(self.one, (key,), (b"%d" % len(args), *args), self.joint)


@dataclass(frozen=True, slots=True)
class LeaseScripts:
    """The scripts that change leases of one duration."""

    acquire: LeaseScript
    """Arguments: connection id, limit, since when what is alive was renewed (by Redis' clock, 0 for
    half a duration ago); then as for `release` what is to be released before.
    Replies with the text of an `Admission`, or `released` for an id that was released already."""
    renew: LeaseScript
    """Arguments: connection ids. Adds those that Redis has lost."""
    release: LeaseScript
    """Arguments: connection id, 1 where a late call might bring it back, else 0; and so on."""

    @classmethod
    def of(cls, duration_s: float) -> "LeaseScripts":
        # Renewed every third: what has less than half left has missed more than one and a half.
        numbers = {"duration_s": f"{duration_s:.6f}", "fresh_s": f"{duration_s / 2:.6f}"}
        acquire, renew, release = (
            LeaseScript.of(Template(_KEEPING + body).substitute(numbers))
            for body in (_ACQUIRE, _RENEW, _RELEASE)
        )
        return cls(acquire, renew, release)


COUNT: Final = LeaseScript.of(_COUNT)
"""How many leases have not lapsed. No arguments."""

CLOCK: Final = Script(f"{_CLOCK} return string.format('%.6f', now)")
"""Seconds. KEYS: one on the server that is meant."""

READ: Final = Script(
    f"{_CLOCK} return redis.call('ZRANGEBYSCORE', KEYS[1], now, '+inf', 'WITHSCORES')"
)
"""The leases that have not lapsed: id, end, id, end, … KEYS: the user's set."""
