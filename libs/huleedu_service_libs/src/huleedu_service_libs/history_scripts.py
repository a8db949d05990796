"""The Lua scripts that read histories; what these hold is said in `notification_scripts`."""

from string import Template
from typing import Final

from huleedu_service_libs.notification_scripts import TEXT_OF
from huleedu_service_libs.notification_settings import HistoryLimits
from huleedu_service_libs.redis_scripts import Script

_ENTRIES_PER_READ: Final = 64

# KEYS: last, history. The id is missing where Redis has evicted it, or somebody has deleted it.
_LAST: Final = f"""
{TEXT_OF}
local last = redis.call('GET', KEYS[1])
local recovered = false
if not last then
  local newest = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
  last = newest and text_of(newest) and newest[1]
  recovered = true
end
"""

_OPEN: Final = """
$last
if recovered then
  if not last then
    redis.call('DEL', KEYS[2])
    last = '0' .. ARGV[1]
  end
  redis.call('SET', KEYS[1], last, 'EX', '$id_retention_s')
end
return last
"""

_READ_AFTER: Final = """
$last
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


def open_script(limits: HistoryLimits) -> Script:
    """The newest id; an origin is made where there is none. KEYS: last, history. ARGV: `-<nonce>`.

    Returns the id.
    """
    return Script(Template(_OPEN).substitute(last=_LAST, id_retention_s=limits.id_retention_s))


READ_AFTER: Final = Script(
    Template(_READ_AFTER).substitute(last=_LAST, entries_per_read=_ENTRIES_PER_READ)
)
"""What follows a cursor. KEYS: last, history. ARGV: cursor, most entries, most bytes.

`{'proven', newest id, position, 1 where nothing more follows, id, text, id, text, …}` without
what has expired or has a newer one of its collapse key behind it, or `{'unproven', newest id,
oldest id kept}` with empty texts where there is none.
"""

READ_NEWEST: Final = Script("return redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', ARGV[1])")
"""The newest entries as XREVRANGE returns them. KEYS: history. ARGV: how many."""
