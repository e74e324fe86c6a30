"""The Lua scripts that change executions in Redis: commits, births, leases and what ends them.

How things lie, and what the pieces of the scripts are, is said in `redis.lua`.
"""

from __future__ import annotations

from flat.backends.redis.connection import Script
from flat.backends.redis.lua import ANSWERED, BASE, EXECUTIONS, OWNERS, SIGNALS

# -- commits --------------------------------------------------------------------------------------

CHECK = """
local id, seq, token, now, base, body = take(), take(), take(), take(), take(), take()
local entry = base..token..':'..body
local num = call('HGET', p..'ids', id)
if not num then return 'stale' end
local e, b = p..'e:'..num, p..'b:'..num
local have = call('HMGET', e, 'token', 'seq'HEAD)
if again == '1' and call('LINDEX', b, seq) == entry then return 'stored' end
if have[1] ~= token or tonumber(have[2]) ~= seq - 1 then return 'stale' end
"""

APPEND = Script(
    BASE
    + CHECK.replace("HEAD", "")
    + """
call('RPUSH', b, entry)
if base == '+' then call('HSET', e, 'seq', seq, 'updated', now, 'base', seq)
else call('HSET', e, 'seq', seq, 'updated', now) end
return 'stored'
"""
)

COMMIT = Script(
    BASE
    + EXECUTIONS
    + SIGNALS
    + CHECK.replace("HEAD", ", 'status', 'wake', 'channels', 'cancel', 'owner'")
    + """
local consumed, known = {}, {}
for _ = 1, take() do
  local signal = take()
  local which = not known[signal] and found(signal)
  if not which then return 'gone' end
  known[signal] = true
  consumed[#consumed + 1] = {signal, which}
end
call('RPUSH', b, entry)
local sets, dels = {'seq', seq, 'updated', now}, {}
local function set(field, value) sets[#sets + 1] = field; sets[#sets + 1] = value end
if base == '+' then set('base', seq) end
for _, one in ipairs(consumed) do spend(one[1], one[2]) end
for _ = 1, take() do call('RPUSH', p..'l:'..num, seq..':'..take()) end
for _ = 1, take() do call('HSETNX', p..'blobs', take(), take()) end
for _ = 1, take() do send(take(), take(), take(), take(), take()) end
for _ = 1, take() do bear(take_birth()) end
if take() == '1' then
  local status, wake, channels, program, answers = take(), take(), take(), text(take()), take()
  if have[3] ~= status then
    call('ZREM', p..'s:'..sha(have[3]), num)
    call('ZADD', p..'s:'..sha(status), num, num)
    set('status', status)
  end
  if have[5] ~= channels then
    if have[5] ~= '[]' then wait_on(num, have[5], 'ZREM') end
    if channels ~= '[]' then wait_on(num, channels, 'ZADD') end
    set('channels', channels)
  end
  if wake ~= '' then
    set('wake', wake)
    call('ZADD', p..'due', wake, num)
  elseif have[4] then
    dels[#dels + 1] = 'wake'
    call('ZREM', p..'due', num)
  end
  if program then set('program', program) end
  if answers == '1' and have[6] then
    dels[#dels + 1] = 'cancel'
    pass_on(num, have[6], have[7], nil)
    have[6] = nil
  end
end
if take() == '1' then
  pass_on(num, have[6], have[7], nil)
  set('token', next_token(token))
  dels[#dels + 1] = 'owner'
  dels[#dels + 1] = 'by'
end
call('HSET', e, unpack(sets))
if #dels > 0 then call('HDEL', e, unpack(dels)) end
return 'stored'
"""
)

# -- births and leases ------------------------------------------------------------------------------

CREATE = Script(
    BASE
    + ANSWERED
    + EXECUTIONS
    + """
local num = bear(take_birth())
return answer(num and '1' or '0')
"""
)

BEGIN = Script(
    BASE
    + EXECUTIONS
    + OWNERS
    + """
local owner, facts, now, ends = take(), take(), take(), take()
local birth = take_birth()
local known = call('HGET', p..'ids', birth.id)
if known then
  local have = call('HMGET', p..'e:'..known, 'by', 'token')
  if have[1] == caller..'.'..number then return have[2] end
  return ''
end
local num = bear(birth)
local token = own(num, owner)
beat(owner, facts, now, ends)
return token
"""
)

ACQUIRE = Script(
    BASE
    + EXECUTIONS
    + OWNERS
    + """
local id, owner, facts, now, ends, gone = take(), take(), take(), take(), take(), take()
local num = call('HGET', p..'ids', id)
if not num then return {'missing'} end
local have = call('HMGET', p..'e:'..num, 'owner', 'token', 'by')
if have[3] == caller..'.'..number and have[1] == owner then return {'yours', have[2]} end
if have[1] and have[1] ~= owner and have[2] ~= gone then
  local holder = call('HGET', p..'owners', have[1])
  local ended = holder and call('ZSCORE', p..'seen', have[1])
  if holder and tonumber(now) <= tonumber(ended) then return {'busy', holder, have[2]} end
end
local token = own(num, owner)
beat(owner, facts, now, ends)
return {'yours', token}
"""
)

BEAT = Script(
    BASE
    + OWNERS
    + """
local owner, facts, now, ends = take(), take(), take(), take()
beat(owner, facts, now, ends)
return 'ok'
"""
)

RELEASE = Script(
    BASE
    + EXECUTIONS
    + """
local id, token = take(), take()
local num = call('HGET', p..'ids', id)
if num and call('HGET', p..'e:'..num, 'token') == token then own(num, nil) end
return 'ok'
"""
)

UNDO = Script(
    BASE
    + EXECUTIONS
    + """
local id, by = take(), take()
local num = call('HGET', p..'ids', id)
if num and call('HGET', p..'e:'..num, 'by') == by then own(num, nil) end
return 'ok'
"""
)

REQUEST_CANCEL = Script(
    BASE
    + """
local num = call('HGET', p..'ids', take())
if not num then return '0' end
local owner = call('HGET', p..'e:'..num, 'owner')
call('HSET', p..'e:'..num, 'cancel', '1')
if owner then call('SADD', p..'c:'..sha(owner), num) end
return '1'
"""
)

DELETE = Script(
    BASE
    + ANSWERED
    + EXECUTIONS
    + """
local id = take()
local num = call('HGET', p..'ids', id)
if not num then return answer('0') end
local was = call('HMGET', p..'e:'..num, 'status', 'parent', 'channels', 'owner', 'token')
-- An execution born later under this id starts above every token that was given out.
local floor = was[5] + 1
if floor > tonumber(call('GET', p..'floor') or 0) then call('SET', p..'floor', string.format('%d', floor)) end
call('HDEL', p..'ids', id)
call('ZREM', p..'all', num)
call('ZREM', p..'due', num)
call('ZREM', p..'s:'..sha(was[1]), num)
if was[2] then call('ZREM', p..'p:'..sha(was[2]), num) end
if was[4] then call('SREM', p..'c:'..sha(was[4]), num) end
wait_on(num, was[3], 'ZREM')
call('UNLINK', p..'e:'..num, p..'b:'..num, p..'l:'..num)
return answer('1')
"""
)
