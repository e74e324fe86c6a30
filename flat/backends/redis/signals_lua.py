"""The Lua scripts for signals of a store in Redis; how they lie is said in `redis.lua`."""

from __future__ import annotations

from flat.backends.redis.connection import Script
from flat.backends.redis.lua import ANSWERED, BASE, SIGNALS

SEND = Script(
    BASE
    + ANSWERED
    + SIGNALS
    + """
return answer(send(take(), take(), take(), take(), take()) and '1' or '0')
"""
)

LETTER = "'id', 'channel', 'body', 'created', 'to', 'reason', 'died', 'place'"

LISTING = Script(
    BASE
    + f"""
local function given(value) if string.sub(value, 1, 1) == '=' then return string.sub(value, 2) end end
local which, channel, to, limit = take(), given(take()), given(take()), tonumber(take())
local last = limit < 0 and -1 or limit - 1
local ids = {{}}
local function add(key, stop)
  local found = call('ZRANGE', key, 0, stop, 'WITHSCORES')
  for i = 1, #found, 2 do ids[#ids + 1] = {{found[i], tonumber(found[i + 1])}} end
end
if which == 'dead' then add(p..'dead', -1)
elseif channel and to then
  add(p..'q:'..sha(channel), last)
  add(p..'q:'..sha(channel)..':'..sha(to), last)
  table.sort(ids, function(a, b) if a[2] ~= b[2] then return a[2] < b[2] end return a[1] < b[1] end)
elseif channel then add(p..'ch:'..sha(channel), last)
else add(p..'open', to and -1 or last) end
local rows = {{}}
for _, one in ipairs(ids) do
  if #rows == limit then break end
  local row = call('HMGET', p..'g:'..call('HGET', p..'sids', one[1]), {LETTER})
  if (not channel or row[2] == channel) and (not to or not row[5] or row[5] == to) then rows[#rows + 1] = row end
end
return rows
""",
    writes=False,
)

FAN_OUT = Script(
    BASE
    + ANSWERED
    + SIGNALS
    + """
local id, count = take(), tonumber(take())
local one = found(id)
if not one or count == 0 or one.to then return answer('0') end
local g = call('HMGET', p..'g:'..one.num, 'body', 'created')
spend(id, one)
for _ = 1, count do
  local to = take()
  local name = id..'@'..to
  while call('HEXISTS', p..'sids', name) == 1 do name = name..'@' end
  store(name, one.channel, g[1], g[2], to, one.place)
end
call('PUBLISH', p..'wake', 'signal')
return answer('1')
"""
)

TAKE = Script(
    BASE
    + ANSWERED
    + SIGNALS
    + """
local id = take()
local one = found(id)
if one then spend(id, one) end
return answer(one and '1' or '0')
"""
)

BURY = Script(
    BASE
    + ANSWERED
    + SIGNALS
    + """
local id, reason, now = take(), take(), take()
local one = found(id)
if not one then return answer('0') end
leave(id, one.channel, one.to)
call('HSET', p..'g:'..one.num, 'reason', reason, 'died', now)
call('ZADD', p..'dead', one.place, id)
return answer('1')
"""
)

REVIVE = Script(
    BASE
    + ANSWERED
    + SIGNALS
    + """
local id = take()
local num = call('HGET', p..'sids', id)
if not num or num == '' or call('HEXISTS', p..'g:'..num, 'died') == 0 then return answer('0') end
call('ZREM', p..'dead', id)
call('HDEL', p..'g:'..num, 'reason', 'died')
local g = call('HMGET', p..'g:'..num, 'channel', 'to', 'place')
enter(id, g[1], g[2], g[3])
call('PUBLISH', p..'wake', 'signal')
return answer('1')
"""
)
