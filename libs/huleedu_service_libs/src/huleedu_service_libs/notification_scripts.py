"""The Lua scripts that publish durable notifications.

What always holds, since each script runs atomically:

1. The entries of a history, in order, are the newest of one chain: each names its predecessor,
   and the key `last` names the newest even when the history has expired.
2. An id is `<offset>-<nonce>`, the offset one more than its predecessor's. After data loss an
   offset may come again, the nonce does not: an id names one publication or none.
3. A user without a notification has an *origin* from the first reader on, an id with offset 0:
   so also "nothing yet" is a position that can be proven, or be found lost.

Fields of an entry: `d` the published text, which begins with the entry's id, `k` its collapse key,
`x` the time in milliseconds since the epoch from which on it is not replayed, `o` the origin that
it follows. What somebody else has put into the stream is passed over by readers, and where it
stands in the way of the chain it goes, with all that was kept.
"""

from dataclasses import dataclass
from string import Template
from typing import Final

from huleedu_service_libs.notification_settings import HistoryLimits
from huleedu_service_libs.redis_scripts import Script

RENEWALS_PER_TTL: Final = 1000
"""Renewing the expiries costs Redis 1 µs. A history may end this part of its time earlier."""
RECEIVERS_BASE: Final = 65_536
# Up to this size every trim is exact. Redis frees whole nodes of 100 entries, so an approximate
# trim would keep several times a small history; for a large one it is cheaper, and cheaper still
# now and then.
EXACT_TRIM_SIZE: Final = 100
PUBLISHES_PER_TRIM: Final = 16

# For Redis these are the user's entries; anybody can XADD to a stream.
TEXT_OF: Final = """
local function text_of(entry)
  local beginning = '{"id":"' .. entry[1] .. '"'
  local name, text = entry[2][1], entry[2][2]
  return name == 'd' and string.sub(text, 1, #beginning) == beginning and text
end
"""

_PUBLISH: Final = """
local call, pcall, match, format = redis.call, redis.pcall, string.match, string.format

local function publish(
  last_key, history, object, nonce, channel, idempotency_key, collapse_key, expires_in_ms
)
  if idempotency_key then
    local first = call('GET', idempotency_key)
    if first then return first end
  end

  local last, renew = call('GET', last_key), $renew
  local last_offset = last and match(last, '^%d+')
  if not last_offset then
    -- Evicted or deleted: the history still knows.
    $text_of
    local newest = call('XREVRANGE', history, '+', '-', 'COUNT', 1)[1]
    last = newest and text_of(newest) and newest[1]
    last_offset = last and match(last, '^%d+') or 0
    renew = true
  end

  local offset = last_offset + 1
  local id = format('%d', offset) .. nonce
  local text
  if offset > 1 then
    text = '{"id":"' .. id .. '","prev":"' .. last .. '",' .. object
  else
    text = '{"id":"' .. id .. '","prev":null,' .. object
  end

  local fields
  if collapse_key or expires_in_ms or offset == 1 then
    fields = {'d', text}
    local function add(name, value)
      if value and value ~= '' then
        fields[#fields + 1] = name
        fields[#fields + 1] = value
      end
    end
    add('o', offset == 1 and last)
    add('k', collapse_key)
    if expires_in_ms and expires_in_ms ~= '' then
      local now = call('TIME')
      add('x', format('%d', now[1] * 1000 + math.floor(now[2] / 1000) + expires_in_ms))
    end
  end

  local added
  if offset > 1 then
    if fields then
      added = pcall('XADD', history, 'NOMKSTREAM', 'MAXLEN', '$trim', '$size', id, unpack(fields))
    elseif offset % $publishes_per_trim == 0 then
      added = pcall('XADD', history, 'NOMKSTREAM', 'MAXLEN', '$trim', '$size', id, 'd', text)
    else
      added = pcall('XADD', history, 'NOMKSTREAM', id, 'd', text)
    end
  end
  if added ~= id then
    -- There is no history, or somebody else's entry is ahead of the chain.
    if offset == 1 or added and string.find(added.err, 'equal or smaller', 1, true) then
      call('DEL', history)
    end
    call('XADD', history, id, unpack(fields or {'d', text}))
    renew = true
  end

  if renew then
    call('SET', last_key, id, 'EX', '$id_retention_s')
    call('EXPIRE', history, '$ttl_s')
  else
    call('SET', last_key, id, 'KEEPTTL')
  end
  if idempotency_key then call('SET', idempotency_key, id, 'EX', '$idempotency_ttl_s') end
  local receivers = call('$publish_command', channel, text)
  return offset * $receivers_base + math.min(receivers, $receivers_base - 1)
end
"""

_ONE: Final = """
return publish(KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3], KEYS[3], ARGV[4], ARGV[5])
"""

_JOINT: Final = """
local keys, args, replies = KEYS, ARGV, {}
for i = 1, #keys / 2 do
  local k, a = 2 * i, 3 * i
  replies[i] = publish(keys[k - 1], keys[k], args[a - 2], args[a - 1], args[a])
end
return replies
"""


@dataclass(frozen=True, slots=True)
class DurableScripts:
    """Scripts that append to histories, then publish, and either renew the expiries or do not."""

    one: Script
    """KEYS: last, history, and the idempotency key's where there is one. ARGV: the object without
    its opening brace, `-<nonce>`, the channel; and optionally the collapse key and the
    milliseconds until it is no longer replayed, either empty where there is none. Returns the
    id where the idempotency key was used before, else one integer, since a list costs Redis 1 µs
    more: `offset * RECEIVERS_BASE + receivers`."""
    joint: Script
    """Several calls of `one` with two keys and three arguments each, one after the other."""


@dataclass(frozen=True, slots=True)
class PublishScripts:
    """How notifications are published with `PUBLISH`, or with `SPUBLISH` on a Cluster that has it.

    Expiries are set where a key is new, and otherwise by `renewing`.
    """

    durable: DurableScripts
    renewing: DurableScripts
    transient: Script
    """Only publishes. KEYS: the channel. ARGV: the object. Returns the receivers."""

    @classmethod
    def of(cls, limits: HistoryLimits, publish_command: str) -> "PublishScripts":
        """The scripts with the limits in their text: an argument costs Redis 0.2 to 0.4 µs."""
        return cls(
            durable=_durable(limits, publish_command, renew="false"),
            renewing=_durable(limits, publish_command, renew="true"),
            transient=Script(f"return redis.call('{publish_command}', KEYS[1], ARGV[1])"),
        )


def renewal_interval_s(limits: HistoryLimits) -> float:
    """How long a user's expiries need no renewal."""
    return limits.ttl_s / RENEWALS_PER_TTL


def _durable(limits: HistoryLimits, publish_command: str, *, renew: str) -> DurableScripts:
    trims_exactly = limits.size <= EXACT_TRIM_SIZE
    publish = Template(_PUBLISH).substitute(
        text_of=TEXT_OF,
        renew=renew,
        trim="=" if trims_exactly else "~",
        size=limits.size,
        publishes_per_trim=1 if trims_exactly else PUBLISHES_PER_TRIM,
        ttl_s=limits.ttl_s,
        id_retention_s=limits.id_retention_s,
        idempotency_ttl_s=limits.idempotency_ttl_s,
        receivers_base=RECEIVERS_BASE,
        publish_command=publish_command,
    )
    return DurableScripts(one=Script(publish + _ONE), joint=Script(publish + _JOINT))
