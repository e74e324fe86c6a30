"""How a store lies in the keys of a Redis server, and the pieces of Lua that its scripts share.

The scripts themselves: `writing_lua.py` (commits, births, leases), `reading_lua.py`, `signals_lua.py`.

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

RING = 16_384
"""Answers that are kept for each caller at most: more than it can have under way when its connection breaks."""
RING_SECONDS = 600

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

ANSWERED = (
    ONCE
    + """
local kept = answered()
if kept then return kept end
"""
)
"""The beginning of a script that gives nothing but the answer it has given already."""

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
