"""The Lua scripts that read executions in Redis; how they lie is said in `redis.lua`."""

from __future__ import annotations

from flat.backends.redis.connection import Script
from flat.backends.redis.lua import BASE

COLUMNS = (
    "'id', 'name', 'kind', 'program', 'status', 'seq', 'created', 'updated', 'parent', 'wake', 'channels', "
    "'owner', 'token'"
)

GET = Script(
    BASE
    + f"""
local num = call('HGET', p..'ids', take())
if not num then return false end
return call('HMGET', p..'e:'..num, {COLUMNS})
""",
    writes=False,
)

LOAD = Script(
    BASE
    + f"""
local num, wanted = call('HGET', p..'ids', take()), text(take())
if not num then return false end
local e, b = p..'e:'..num, p..'b:'..num
local have = call('HMGET', e, 'seq', 'base')
local seq, start = tonumber(have[1]), tonumber(have[2])
wanted = wanted and tonumber(wanted) or seq
if wanted < 0 or wanted > seq then return false end
local high = wanted
while start > wanted do
  start = -1
  local low = math.max(0, high - 63)
  local part = call('LRANGE', b, low, high)
  for i = #part, 1, -1 do
    if string.byte(part[i]) == 43 then start = low + i - 1; break end
  end
  if start < 0 then start = wanted + 1; high = low - 1 end
end
return {{call('HMGET', e, {COLUMNS}), start, wanted, call('LRANGE', b, start, wanted),
  call('LRANGE', p..'l:'..num, 0, -1)}}
""",
    writes=False,
)

BODIES = Script(
    BASE
    + """
local num = call('HGET', p..'ids', take())
if not num then return {} end
return call('LRANGE', p..'b:'..num, 0, -1)
""",
    writes=False,
)

FIND = Script(
    BASE
    + f"""
local status, channel, parent, due, below, left = take(), take(), take(), text(take()), take(), tonumber(take())
local function given(value) if string.sub(value, 1, 1) == '=' then return string.sub(value, 2) end end
status, channel, parent = given(status), given(channel), given(parent)
local source = p..'all'
if channel then source = p..'w:'..sha(channel)
elseif parent then source = p..'p:'..sha(parent)
elseif status then source = p..'s:'..sha(status) end
local nums
local whole = due and not channel and not parent
if whole then
  nums = {{}}
  for _, num in ipairs(call('ZRANGEBYSCORE', p..'due', '-inf', due)) do
    if tonumber(num) < tonumber(below) then nums[#nums + 1] = num end
  end
  table.sort(nums, function(a, b) return tonumber(a) > tonumber(b) end)
else
  nums = call('ZREVRANGEBYSCORE', source, '('..below, '-inf', 'LIMIT', 0, 1000)
end
local rows, last = {{}}, ''
for _, num in ipairs(nums) do
  if left == 0 then break end
  local row = call('HMGET', p..'e:'..num, {COLUMNS})
  last = num
  if (not status or row[5] == status) and (not parent or row[9] == parent)
      and (not due or (row[10] and tonumber(row[10]) <= tonumber(due))) then
    rows[#rows + 1] = row
    left = left - 1
  end
end
if left ~= 0 and (whole or #nums < 1000) then last = '' end
return {{last, rows}}
""",
    writes=False,
)

READY = Script(
    BASE
    + f"""
local now, limit = take(), tonumber(take())
local since = {{}}
local function reason(num, at)
  at = tonumber(at)
  if not since[num] or at < since[num] then since[num] = at end
end
local function head(key)
  local first = call('ZRANGE', key, 0, 0)[1]
  return call('HGET', p..'g:'..call('HGET', p..'sids', first), 'created')
end
for _, channel in ipairs(call('SMEMBERS', p..'calls')) do
  local nums = call('ZRANGE', p..'w:'..channel, 0, -1)
  if #nums > 0 then
    local at = head(p..'q:'..channel)
    for _, num in ipairs(nums) do reason(num, at) end
  end
end
local letters = call('HGETALL', p..'letters')
for i = 1, #letters, 2 do
  local num = call('HGET', p..'ids', letters[i + 1])
  if num and call('ZSCORE', p..'w:'..string.sub(letters[i], 1, 40), num) then
    reason(num, head(p..'q:'..letters[i]))
  end
end
-- A long queue is a long list of timers that are due: no more of it is read than can be told.
local from, got, last = 0, 0, nil
local function enough(at) return limit >= 0 and got >= limit and at ~= last end
repeat
  local timers = call('ZRANGEBYSCORE', p..'due', '-inf', now, 'WITHSCORES', 'LIMIT', from, 256)
  for i = 1, #timers, 2 do
    if enough(timers[i + 1]) then break end
    if call('HGET', p..'e:'..timers[i], 'status') == 'waiting' then
      reason(timers[i], timers[i + 1])
      got, last = got + 1, timers[i + 1]
    end
  end
  from = from + 256
until #timers < 512 or enough(timers[#timers])
local nums = {{}}
for num in pairs(since) do nums[#nums + 1] = num end
table.sort(nums, function(a, b)
  if since[a] ~= since[b] then return since[a] < since[b] end
  return tonumber(a) < tonumber(b)
end)
local rows = {{}}
for _, num in ipairs(nums) do
  if #rows == limit then break end
  local row = call('HMGET', p..'e:'..num, {COLUMNS})
  if row[5] == 'waiting' then rows[#rows + 1] = row end
end
return rows
""",
    writes=False,
)

HOLDER = Script(
    BASE
    + """
local num = call('HGET', p..'ids', take())
local owner = num and call('HGET', p..'e:'..num, 'owner')
if not owner then return {} end
return {owner, call('HGET', p..'owners', owner)}
""",
    writes=False,
)

CANCEL_REQUESTED = Script(
    BASE
    + """
local nums, found = call('SMEMBERS', p..'c:'..sha(take())), {}
table.sort(nums, function(a, b) return tonumber(a) < tonumber(b) end)
for i, num in ipairs(nums) do found[i] = call('HGET', p..'e:'..num, 'id') end
return found
""",
    writes=False,
)
