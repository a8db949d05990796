"""The Lua scripts that read histories; what these hold is said in `notification_scripts`."""

from dataclasses import dataclass
from string import Template
from typing import Final

from huleedu_service_libs.notification_scripts import TEXT_OF
from huleedu_service_libs.notification_settings import HistoryLimits
from huleedu_service_libs.redis_scripts import Script

_ENTRIES_PER_READ: Final = 64

_OPEN: Final = f"""
{TEXT_OF}
local function open(last_key, history, nonce)
  local last = redis.call('GET', last_key)
  if last or nonce == '' then return last end
  local newest = redis.call('XREVRANGE', history, '+', '-', 'COUNT', 1)[1]
  last = newest and text_of(newest) and newest[1]
  if not last then
    redis.call('DEL', history)
    last = '0' .. nonce
  end
  redis.call('SET', last_key, last, 'EX', '$id_retention_s')
  return last
end
"""

_OPEN_ONE: Final = """
return open(KEYS[1], KEYS[2], ARGV[1])
"""

# What is wrong with one user's keys must not keep the others from their answer. Redis 6 throws a
# text, later ones an error reply.
_OPEN_SEVERAL: Final = """
local replies = {}
for i = 1, #ARGV do
  local opened, reply = pcall(open, KEYS[2 * i - 1], KEYS[2 * i], ARGV[i])
  if opened or type(reply) == 'table' then
    replies[i] = reply
  else
    replies[i] = {err = reply}
  end
end
return replies
"""

_READ_AFTER: Final = """
$text_of
local last = redis.call('GET', KEYS[1])
if not last then
  -- Redis has evicted it, or somebody has deleted it.
  local newest = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
  last = newest and text_of(newest) and newest[1]
end
local cursor, max_entries, max_bytes = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
if last == cursor then return {'proven', last, cursor, 1} end

local function fields_of(entry)
  local fields = {}
  for i = 1, #entry[2], 2 do fields[entry[2][i]] = entry[2][i + 1] end
  return fields
end

local function follows_cursor(entry)
  local beginning = '{"id":"' .. entry[1] .. '","prev":"' .. cursor .. '"'
  local fields = fields_of(entry)
  return fields.o == cursor or string.sub(fields.d or '', 1, #beginning) == beginning
end

local batch = redis.call('XRANGE', KEYS[2], cursor, '+', 'COUNT', $entries_per_read)
local first = batch[1]
local at_cursor = first and first[1] == cursor
if not last or not first or not (at_cursor or follows_cursor(first)) then
  local oldest = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
  return {'unproven', last or '', oldest and oldest[1] or ''}
end

local now = redis.call('TIME')
now = now[1] * 1000 + math.floor(now[2] / 1000)
local ids, texts, bytes = {}, {}, 0
local newest_of_key, has_keys = {}, false
local position, full, complete = cursor, false, 1
local index = at_cursor and 2 or 1
-- Beyond a full page the keys of its entries may come again.
while batch[1] and (not full or has_keys) do
  for i = index, #batch do
    local text, fields = text_of(batch[i]), fields_of(batch[i])
    local key = text and fields.k
    local older = key and newest_of_key[key]
    if older then texts[older] = false end
    if text and full then
      complete = 0
    elseif text then
      position = batch[i][1]
      local slot = #ids + 1
      ids[slot] = position
      texts[slot] = not (fields.x and tonumber(fields.x) <= now) and text
      if texts[slot] then bytes = bytes + #text end
      if key then
        newest_of_key[key] = slot
        has_keys = true
      end
      full = slot >= max_entries or bytes >= max_bytes
    end
  end
  index = 1
  batch = redis.call('XRANGE', KEYS[2], '(' .. batch[#batch][1], '+', 'COUNT', $entries_per_read)
  if full and batch[1] then complete = 0 end
end

local page = {'proven', last, position, complete}
for slot = 1, #ids do
  if texts[slot] then
    page[#page + 1] = ids[slot]
    page[#page + 1] = texts[slot]
  end
end
return page
"""


@dataclass(frozen=True, slots=True)
class OpenScripts:
    """The newest ids of users."""

    one: Script
    """KEYS: last, history. ARGV: `-<nonce>`. Returns the id; where there is none, that of an
    origin which it makes. With an empty argument it makes nothing, and returns nil."""
    joint: Script
    """Several calls of `one`, each with an id or an error of its own."""

    @classmethod
    def of(cls, limits: HistoryLimits) -> "OpenScripts":
        body = Template(_OPEN).substitute(id_retention_s=limits.id_retention_s)
        return cls(one=Script(body + _OPEN_ONE), joint=Script(body + _OPEN_SEVERAL))


READ_AFTER: Final = Script(
    Template(_READ_AFTER).substitute(text_of=TEXT_OF, entries_per_read=_ENTRIES_PER_READ)
)
"""What follows a cursor. KEYS: last, history. ARGV: cursor, most entries, most bytes.

`{'proven', newest id, position, 1 where nothing more follows, id, text, id, text, …}` without
what has expired or has a newer one of its collapse key behind it, or `{'unproven', newest id,
oldest id kept}` with empty texts where there is none.
"""

READ_NEWEST: Final = Script("return redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', ARGV[1])")
"""The newest entries as XREVRANGE returns them. KEYS: history. ARGV: how many."""
