"""The Lua scripts of a store in Redis, and how it lies in keys.

Text from outside is never a part of a key: ids are fields of hashes and members of sets, and where a set belongs to a
channel, a status, a parent or an owner, its key holds the SHA-1 of that. Executions and signals have numbers.

    ids              hash    execution id -> number          e:<num>   hash   its columns
    all              zset    every number                    b:<num>   list   its bodies: "+" or "-", token, ":", body
    s: p: w:<sha1>   zsets   numbers by status, parent,      l:<num>   list   its log: seq, ":", row
                             channel waited on               c:<sha1>  set    numbers whose owner is to cancel them
    due              zset    numbers by wake_at              owners, seen     who drives, and until when
    sids             hash    signal id -> number, "" gone    g:<num>   hash   a signal
    open, dead       zsets   signal ids by place             ch:<sha1> zset   open ones of one channel
    q:<sha1>         zset    open, for anybody               q:<sha1>:<sha1>  open, for one execution
    calls, letters   channels with a line for anybody; lines for one execution, and for whom
    blobs, configs   hashes by digest                        r:<caller>:<n>   answers to its newest calls
    lock:<sha1>, fence   locks, and their last token         res:<sha1>       a result (`redis.lock`, `redis.results`)

Every script checks first and writes afterwards, since Redis takes nothing back. ARGV begins with the prefix, "1" if
the call may have been made before, the caller and the number of the call. A script that would do harm if it ran twice
keeps its answer in a ring of RING slots for its caller, and gives that when it is asked again.
"""

from __future__ import annotations

from flat.backends.redis.connection import Script

RING = 16_384
"""Answers that are kept for each caller at most: more than it can have under way when its connection breaks."""
RING_SECONDS = 600

COLUMNS = (
    "'id', 'name', 'kind', 'program', 'status', 'seq', 'created', 'updated', 'parent', 'wake', 'channels', "
    "'owner', 'token'"
)

BASE = """
local p, again, caller, number = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local call = redis.call
local at = 4
local function take() at = at + 1; return ARGV[at] end
local function text(value) if value == '' then return nil end return value end
local function sha(value) return redis.sha1hex(value) end
"""

ONCE = f"""
local slot = p..'r:'..caller..':'..(number % {RING})
local function answered()
  if again == '0' then return end
  local kept = call('GET', slot)
  if kept and string.sub(kept, 1, #number + 1) == number..':' then return string.sub(kept, #number + 2) end
end
local function answer(value)
  call('SET', slot, number..':'..value, 'EX', {RING_SECONDS})
  return value
end
"""

EXECUTIONS = """
local function wait_on(num, channels, command)
  for _, channel in ipairs(cjson.decode(channels)) do
    if command == 'ZADD' then call('ZADD', p..'w:'..sha(channel), num, num)
    else call('ZREM', p..'w:'..sha(channel), num) end
  end
end
local function pass_on(num, cancel, was, owner)  -- a request to cancel goes to whoever owns it next
  if cancel then
    if was then call('SREM', p..'c:'..sha(was), num) end
    if owner then call('SADD', p..'c:'..sha(owner), num) end
  end
end
local function next_token(token) return string.format('%d', token + 1) end
local function own(num, owner)
  local e = p..'e:'..num
  local was = call('HMGET', e, 'owner', 'cancel', 'token')
  local token = next_token(was[3])
  pass_on(num, was[2], was[1], owner)
  if owner then call('HSET', e, 'token', token, 'owner', owner, 'by', caller..'.'..number)
  else
    call('HSET', e, 'token', token)
    call('HDEL', e, 'owner', 'by')
  end
  return token
end
local function take_birth()
  local b = {}
  for _, name in ipairs({'id', 'name', 'kind', 'program', 'status', 'created', 'updated', 'channels', 'parent',
      'wake', 'body'}) do b[name] = take() end
  return b
end
local function bear(b)
  if call('HEXISTS', p..'ids', b.id) == 1 then return nil end
  local num = string.format('%d', call('INCR', p..'nums'))
  local e = p..'e:'..num
  call('HSET', p..'ids', b.id, num)
  call('HSET', e, 'id', b.id, 'name', b.name, 'kind', b.kind, 'program', b.program, 'status', b.status, 'seq', 0,
    'created', b.created, 'updated', b.updated, 'channels', b.channels, 'token', call('GET', p..'floor') or 0,
    'base', 0)
  call('ZADD', p..'all', num, num)
  call('ZADD', p..'s:'..sha(b.status), num, num)
  if string.sub(b.parent, 1, 1) == '=' then
    local parent = string.sub(b.parent, 2)
    call('HSET', e, 'parent', parent)
    call('ZADD', p..'p:'..sha(parent), num, num)
  end
  if b.wake ~= '' then
    call('HSET', e, 'wake', b.wake)
    call('ZADD', p..'due', b.wake, num)
  end
  if b.channels ~= '[]' then wait_on(num, b.channels, 'ZADD') end
  call('RPUSH', p..'b:'..num, '+0:'..b.body)
  return num
end
"""

OWNERS = """
local function beat(owner, facts, now, ends)
  if call('HSET', p..'owners', owner, facts) == 1 then
    for _, old in ipairs(call('ZRANGEBYSCORE', p..'seen', '-inf', now - 86400, 'LIMIT', 0, 100)) do
      call('HDEL', p..'owners', old)
      call('ZREM', p..'seen', old)
    end
  end
  call('ZADD', p..'seen', ends, owner)
end
"""

SIGNALS = """
local function line(channel, to)
  if to then return p..'q:'..sha(channel)..':'..sha(to) end
  return p..'q:'..sha(channel)
end
local function enter(id, channel, to, place)
  local digest = sha(channel)
  call('ZADD', line(channel, to), place, id)
  call('ZADD', p..'ch:'..digest, place, id)
  call('ZADD', p..'open', place, id)
  if to then call('HSET', p..'letters', digest..':'..sha(to), to)
  else call('SADD', p..'calls', digest) end
end
local function leave(id, channel, to)
  local digest, key = sha(channel), line(channel, to)
  call('ZREM', key, id)
  call('ZREM', p..'ch:'..digest, id)
  call('ZREM', p..'open', id)
  if call('EXISTS', key) == 0 then
    if to then call('HDEL', p..'letters', digest..':'..sha(to))
    else call('SREM', p..'calls', digest) end
  end
end
local function found(id)
  local num = call('HGET', p..'sids', id)
  if not num or num == '' then return end
  local g = call('HMGET', p..'g:'..num, 'died', 'channel', 'to', 'place')
  if not g[1] then return {num = num, channel = g[2], to = g[3], place = g[4]} end
end
local function spend(id, one)
  leave(id, one.channel, one.to)
  call('DEL', p..'g:'..one.num)
  call('HSET', p..'sids', id, '')
end
local function store(id, channel, body, created, to, place)
  local num = string.format('%d', call('INCR', p..'snums'))
  call('HSET', p..'sids', id, num)
  call('HSET', p..'g:'..num, 'id', id, 'channel', channel, 'body', body, 'created', created,
    'place', place or num)
  if to then call('HSET', p..'g:'..num, 'to', to) end
  enter(id, channel, to, place or num)
end
local function addressee(to) if string.sub(to, 1, 1) == '=' then return string.sub(to, 2) end end
local function send(id, channel, body, created, to)
  if call('HEXISTS', p..'sids', id) == 1 then return false end
  store(id, channel, body, created, addressee(to))
  call('PUBLISH', p..'wake', 'signal')
  return true
end
"""

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
    + ONCE
    + EXECUTIONS
    + """
local kept = answered()
if kept then return kept end
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

DELETE = Script(
    BASE
    + ONCE
    + EXECUTIONS
    + """
local kept = answered()
if kept then return kept end
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

# -- reading ------------------------------------------------------------------------------------------

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
