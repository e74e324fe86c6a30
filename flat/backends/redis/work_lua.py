"""The Lua scripts of work pools and of the register of workers in Redis.

    pools, jobnums   pool name -> number; the last job's number       j:<num>            hash  a job
    wp: wc: wd: wx:<pool>   zsets of its pending, claimed, done and poisoned jobs, by number
    wl:<pool>        zset of leased jobs by the end of the lease      wk:<pool>          hash  worker, key -> job
    workers          set of worker ids                                wr:<sha1 of id>    hash  a worker

Numbers only rise, so that jobs stand in the order of their pushes and no id comes back. A script that ends leases
answers with what it poisoned on its way, for the log.
"""

from __future__ import annotations

from flat.backends.redis.connection import Script
from flat.backends.redis.lua import ANSWERED, BASE, ONCE

FIELDS = (
    "'num', 'data', 'status', 'worker', 'attempts', 'max', 'created', 'claimed', 'until', 'error', 'result'"
)

POOL = """
local name = take()
local pool = call('HGET', p..'pools', name)
local sets = {pending = 'wp:', claimed = 'wc:', done = 'wd:', poisoned = 'wx:'}
local poisoned = {}
local function set(status) return p..sets[status]..pool end
local function facts(num, ...) return call('HMGET', p..'j:'..num, ...) end
local function known(num)
  if pool and call('HGET', p..'j:'..num, 'pool') == pool then return true end
end
local function move(num, from, to)
  call('ZREM', set(from), num)
  call('ZADD', set(to), num, num)
  call('HSET', p..'j:'..num, 'status', to)
end
local function unhand(num, key, ends)
  if key then call('HDEL', p..'wk:'..pool, key) end
  if ends then call('ZREM', p..'wl:'..pool, num) end
end
local function let_go(num)
  local was = facts(num, 'key', 'until')
  unhand(num, was[1], was[2])
  call('HDEL', p..'j:'..num, 'until', 'key')
end
local function free(num) call('HDEL', p..'j:'..num, 'worker', 'claimed') end
local function again_or_poisoned(num, from, why)
  local was = facts(num, 'attempts', 'max')
  local ended = tonumber(was[1]) < tonumber(was[2]) and 'pending' or 'poisoned'
  move(num, from, ended)
  if ended == 'poisoned' then
    if why then call('HSET', p..'j:'..num, 'error', why) end
    poisoned[#poisoned + 1] = {num, was[1], call('HGET', p..'j:'..num, 'error') or ''}
  end
  return ended
end
local function sweep(now)
  if not pool then return end
  for _, num in ipairs(call('ZRANGEBYSCORE', p..'wl:'..pool, '-inf', now)) do
    local was = facts(num, 'worker', 'attempts')
    let_go(num)
    free(num)
    again_or_poisoned(num, 'claimed', 'the lease of worker '..was[1]..' ran out in attempt '..was[2]
      ..', and no attempt is left')
  end
end
"""

PUSH = Script(
    BASE
    + ANSWERED
    + POOL
    + """
local now, retries, count = take(), take(), tonumber(take())
if not pool then
  pool = string.format('%d', call('HLEN', p..'pools') + 1)
  call('HSET', p..'pools', name, pool)
end
local last = call('INCRBY', p..'jobnums', count)
for i = 1, count do
  local num = string.format('%d', last - count + i)
  call('HSET', p..'j:'..num, 'num', num, 'pool', pool, 'data', take(), 'status', 'pending', 'attempts', 0,
    'max', retries, 'created', now)
  call('ZADD', set('pending'), num, num)
end
return answer(string.format('%d', last))
"""
)

CLAIM = Script(
    BASE
    + ONCE
    + POOL
    + f"""
local worker, now, ends, key, limit = take(), take(), text(take()), take(), take()
local rows, nums = {{}}, {{}}
local kept = answered()
if kept then
  for num in string.gmatch(kept, '%d+') do rows[#rows + 1] = facts(num, {FIELDS}) end
  return {{rows, {{}}}}
end
sweep(now)
if not pool then return {{rows, {{}}}} end
if key ~= '' then
  local held = call('HGET', p..'wk:'..pool, key)
  if held then return {{{{facts(held, {FIELDS})}}, poisoned}} end
end
local heads = call('ZPOPMIN', set('pending'), limit)
for i = 1, #heads, 2 do
  local num = heads[i]
  local j = p..'j:'..num
  local was = call('HMGET', j, 'data', 'attempts', 'max', 'created', 'error')
  local attempts = string.format('%d', was[2] + 1)
  call('ZADD', set('claimed'), num, num)
  call('HSET', j, 'status', 'claimed', 'worker', worker, 'claimed', now, 'attempts', attempts)
  if key ~= '' then
    call('HSET', p..'wk:'..pool, key, num)
    call('HSET', j, 'key', key)
  end
  if ends then
    call('ZADD', p..'wl:'..pool, ends, num)
    call('HSET', j, 'until', ends)
  end
  nums[#nums + 1] = num
  rows[#rows + 1] = {{num, was[1], 'claimed', worker, attempts, was[3], was[4], now, ends or false, was[5], false}}
end
if #nums > 0 then answer(table.concat(nums, ' ')) end
return {{rows, poisoned}}
"""
)

RENEW = Script(
    BASE
    + POOL
    + """
local now, num, worker, ends = take(), take(), take(), take()
sweep(now)
if not known(num) then return {'0', poisoned} end
local was = facts(num, 'status', 'worker')
if was[1] ~= 'claimed' or was[2] ~= worker then return {'0', poisoned} end
call('ZADD', p..'wl:'..pool, ends, num)
call('HSET', p..'j:'..num, 'until', ends)
return {'1', poisoned}
"""
)

HELD = """
local kept = answered()
if kept then return {kept, {}} end
local now, named, worker = take(), take(), take()
local function refusal(num)
  local was = pool and facts(num, 'status', 'worker', 'pool', 'key', 'until') or {}
  if was[5] and tonumber(was[5]) <= tonumber(now) then
    sweep(now)
    was = facts(num, 'status', 'worker', 'pool', 'key', 'until')
  end
  if was[3] ~= pool or not pool then return {'missing', poisoned, num}, was end
  if was[1] == 'done' or was[1] == 'poisoned' or (named == '1' and was[2] ~= worker) then
    return {'refused', poisoned, num, was[1], was[2]}, was
  end
  return nil, was
end
"""

COMPLETE = Script(
    BASE
    + ONCE
    + POOL
    + HELD
    + """
local keep, count, ending = take(), take(), {}
for _ = 1, count do
  local num, result = take(), take()
  local refused, was = refusal(num)
  local again = refused and refused[4] == 'done' and (named == '0' or refused[5] == worker)
  if refused and not again then return refused end
  if not again then ending[#ending + 1] = {num, result, was} end
end
for _, one in ipairs(ending) do
  local num, was = one[1], one[3]
  local status = was[1]
  if status == 'claimed' then unhand(num, was[4], was[5]) end
  if keep == '1' then
    call('HDEL', p..'j:'..num, 'until', 'key')
    move(num, status, 'done')
    call('HSET', p..'j:'..num, 'result', one[2])
    if named == '1' then call('HSET', p..'j:'..num, 'worker', worker) end
  else
    call('ZREM', set(status), num)
    call('UNLINK', p..'j:'..num)
  end
end
return {answer('ok'), poisoned}
"""
)

FAIL = Script(
    BASE
    + ONCE
    + POOL
    + HELD
    + """
local num, error = take(), take()
local refused = refusal(num)
if refused then return refused end
local status = call('HGET', p..'j:'..num, 'status')
if status == 'claimed' then let_go(num) end
free(num)
if error == '' then call('HDEL', p..'j:'..num, 'error')
else call('HSET', p..'j:'..num, 'error', string.sub(error, 2)) end
return {answer(again_or_poisoned(num, status)), poisoned}
"""
)

RELEASE_WORKER = Script(
    BASE
    + ANSWERED
    + POOL
    + """
if not pool then return '0' end
local worker, freed = take(), 0
-- Rare, and so what looks at every claimed job; a set for each worker would cost something at every job.
for _, num in ipairs(call('ZRANGE', set('claimed'), 0, -1)) do
  if call('HGET', p..'j:'..num, 'worker') == worker then
    let_go(num)
    free(num)
    move(num, 'claimed', 'pending')
    freed = freed + 1
  end
end
return answer(string.format('%d', freed))
"""
)

SIZE = Script(
    BASE
    + POOL
    + """
sweep(take())
return {pool and call('ZCARD', set('pending')) or 0, poisoned}
"""
)

GET = Script(
    BASE
    + POOL
    + f"""
sweep(take())
local num = take()
if not known(num) then return {{false, poisoned}} end
return {{facts(num, {FIELDS}), poisoned}}
"""
)

ITEMS = Script(
    BASE
    + POOL
    + f"""
sweep(take())
local status, limit, nums = text(take()), tonumber(take()), {{}}
if not pool then return {{nums, poisoned}} end
for one in pairs(sets) do
  if not status or one == status then
    for _, num in ipairs(call('ZRANGE', set(one), 0, limit < 0 and -1 or limit)) do nums[#nums + 1] = num end
  end
end
table.sort(nums, function(a, b) return tonumber(a) < tonumber(b) end)
local rows = {{}}
for i, num in ipairs(nums) do
  if #rows == limit then break end
  rows[i] = facts(num, {FIELDS})
end
return {{rows, poisoned}}
"""
)

RETRY = Script(
    BASE
    + ANSWERED
    + POOL
    + """
local num = take()
if not known(num) then return '' end
local status = call('HGET', p..'j:'..num, 'status')
if status == 'poisoned' then
  move(num, status, 'pending')
  call('HSET', p..'j:'..num, 'attempts', 0)
end
return answer(status)
"""
)

DISCARD = Script(
    BASE
    + ONCE
    + POOL
    + """
local kept = answered()
if kept then return {kept} end
local num = take()
if not known(num) then return {'missing'} end
local was = facts(num, 'status', 'worker')
if was[1] == 'claimed' then return {'held', was[2]} end
call('ZREM', set(was[1]), num)
call('UNLINK', p..'j:'..num)
return {answer('ok')}
"""
)

POOLS = Script(
    BASE
    + """
local found, all = {}, call('HGETALL', p..'pools')
for i = 1, #all, 2 do
  local n = all[i + 1]
  if call('EXISTS', p..'wp:'..n, p..'wc:'..n, p..'wd:'..n, p..'wx:'..n) > 0 then found[#found + 1] = all[i] end
end
return found
""",
    writes=False,
)

# -- workers ----------------------------------------------------------------------------------------

REGISTER = Script(
    BASE
    + """
local id, said, now = take(), take(), take()
local w = p..'wr:'..sha(id)
call('DEL', w)
call('HSET', w, 'said', said, 'status', 'active', 'seen', now)
call('SADD', p..'workers', id)
return 'ok'
"""
)

HEARTBEAT = Script(
    BASE
    + """
local id, now, task, count = take(), take(), take(), tonumber(take())
local w = p..'wr:'..sha(id)
if call('EXISTS', w) == 0 then return '0' end
call('HSET', w, 'seen', now)
if task == '=' then call('HDEL', w, 'task')
elseif task ~= '' then call('HSET', w, 'task', string.sub(task, 2)) end
for _ = 1, count do call('HSET', w, take(), take()) end
return '1'
"""
)

SET_STATUS = Script(
    BASE
    + """
local id, status = take(), take()
local w = p..'wr:'..sha(id)
if call('EXISTS', w) == 0 then return '0' end
call('HSET', w, 'status', status)
return '1'
"""
)

WORKER = Script(BASE + "return call('HGETALL', p..'wr:'..sha(take()))", writes=False)

WORKERS = Script(
    BASE
    + """
local rows = {}
for i, id in ipairs(call('SMEMBERS', p..'workers')) do rows[i] = call('HGETALL', p..'wr:'..sha(id)) end
return rows
""",
    writes=False,
)
