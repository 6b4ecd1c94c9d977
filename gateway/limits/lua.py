"""The Lua half of the limiter's steps; `scripts.py` has the Python half and says what the records are."""

from __future__ import annotations

COMMON = """
local SLOTS, BUSY, MINUTE, ACCOUNT_TTL, HOLD_TTL, NOTED_MAX = 60, 1000000, 60000000, 604800000, 14400000, 10000
local at = 0
local function take() at = at + 1; return tonumber(ARGV[at]) end
local function div(a, b) return math.floor(a / b) end
local before = {}
local function read(key)
  local flat, record, was = redis.call('HGETALL', key), {}, {}
  for i = 1, #flat, 2 do
    local value = tonumber(flat[i + 1])
    record[flat[i]], was[flat[i]] = value, value
  end
  before[key] = was
  return record
end
local function write(key, record, ttl_ms)
  local was, changed, gone = before[key], {}, {}
  if not was then
    redis.call('DEL', key)
    was = {}
  end
  for name, value in pairs(record) do
    if was[name] ~= value then
      changed[#changed + 1] = name
      changed[#changed + 1] = string.format('%.0f', value)
    end
  end
  for name in pairs(was) do
    if record[name] == nil then gone[#gone + 1] = name end
  end
  if #changed > 0 then redis.call('HSET', key, unpack(changed)) end
  if #gone > 0 then redis.call('HDEL', key, unpack(gone)) end
  redis.call('PEXPIRE', key, string.format('%.0f', ttl_ms))
  before[key] = nil
end
local function part(name, letter)
  if string.sub(name, 1, 1) == letter then return tonumber(string.sub(name, 2)) end
end
local function field(letter, number) return letter .. string.format('%.0f', number) end
local function window_ttl(window_us) return div(window_us * 2, 1000) + 60000 end
local now_minute = div(now_us, MINUTE)
local function expire(record)
  record.held = record.held or 0
  for name, value in pairs(record) do
    local minute = part(name, 'x')
    if minute and minute < now_minute then
      record.held = record.held - value
      record[name] = nil
    end
  end
end
local function hold(record, minute, amount)
  local name = field('x', minute)
  record.held = record.held + amount
  record[name] = (record[name] or 0) + amount
end
local function charge(record, turn, place, nano)
  local name = field('s', place)
  if nano > 0 and (not record.spent or turn ~= (record.turn or 0)) then
    record.late = (record.late or 0) + 1
    record.spent = nil
    for other in pairs(record) do
      if part(other, 's') then record[other] = nil end
    end
  elseif record.spent and (place < 0 or record[name]) then
    record.spent = record.spent + nano
    if place >= 0 then record[name] = record[name] + nano end
  end
end
local function advance(record, slot_us)
  local gone = 0
  record.last = math.max(record.last or 0, div(now_us, slot_us))
  for name, value in pairs(record) do
    local slot = part(name, 's')
    if slot and slot < record.last - SLOTS then
      gone = gone + value
      record[name] = nil
    end
  end
  return gone
end
local function some(key, ...)
  local found, record, was = redis.call('HMGET', key, ...), {}, {}
  for i, name in ipairs({...}) do
    local value = tonumber(found[i])
    record[name], was[name] = value, value
  end
  before[key] = was
  return record
end
local function window(key, slot_us, sliding)
  local slot = sliding and div(now_us, slot_us) or 0
  local r = some(key, 'total', 'held', 'last', field('s', slot))
  if r.last == slot then return r, false end
  r = read(key)
  r.total, r.held, r.last = r.total or 0, r.held or 0, r.last or 0
  if sliding then r.total = r.total - advance(r, slot_us) end
  return r, true
end
local function leaves(record, excess, slot_us)
  local slots, last = {}, record.last
  for name in pairs(record) do slots[#slots + 1] = part(name, 's') end
  table.sort(slots)
  for _, slot in ipairs(slots) do
    last = slot
    excess = excess - record[field('s', slot)]
    if excess <= 0 then break end
  end
  return math.max((last + SLOTS + 1) * slot_us - now_us, 1)
end
local windows, gates, accounts = take(), take(), take()
local function enter(mark)
  for i = windows + 1, windows + gates do mark['@' .. KEYS[i]] = 1 end
  local noted = KEYS[#KEYS - 1]
  if gates > 0 and redis.call('HLEN', noted) < NOTED_MAX then
    redis.call('HSET', noted, KEYS[#KEYS], 1)
    redis.call('PEXPIRE', noted, string.format('%.0f', HOLD_TTL))
  end
end
local function free(mark)
  for name in pairs(mark) do
    if string.sub(name, 1, 1) == '@' then
      local key = string.sub(name, 2)
      local r = read(key)
      if r.held and mark.minute >= now_minute then
        hold(r, mark.minute, -1)
        write(key, r, HOLD_TTL)
      end
      mark[name] = nil
    end
  end
end
"""

ADMIT = (
    COMMON
    + """
local minute = div(now_us + take(), MINUTE)
local input_tokens, input_nano, output, choices, unit_nano, output_min = take(), take(), take(), take(), take(), take()
local fits = output
local seen = {}
for i = 1, windows do
  local w = {unit = take(), limit = take(), us = take(), ends_us = take()}
  w.slot_us = -div(-w.us, SLOTS)
  w.r, w.whole = window(KEYS[i], w.slot_us, w.ends_us == 0)
  w.r.held = math.min(w.r.held, w.r.total)
  if w.unit == 1 then fits = math.min(fits, div(w.limit - input_tokens, choices)) end
  seen[i] = w
end
for i = 1, gates do seen[windows + i] = {limit = take(), r = read(KEYS[windows + i])} end
local missing = {2}
for i = 1, accounts do
  local a = {limit = take(), us = take(), r = read(KEYS[windows + gates + i])}
  a.slot_us = -div(-a.us, SLOTS)
  if not a.r.spent then missing[#missing + 1] = i - 1
  elseif a.us > 0 then a.r.spent = a.r.spent - advance(a.r, a.slot_us) end
  if unit_nano > 0 and a.r.spent then fits = math.min(fits, div(a.limit - a.r.spent - input_nano, unit_nano)) end
  seen[windows + gates + i] = a
end
if #missing > 1 then return missing end
if output_min >= 0 then output = math.min(output, math.max(fits, output_min)) end
local tokens, nano = input_tokens + output * choices, input_nano + output * unit_nano

local worst
local function refuse(kind, index, limit, remaining, retry)
  if not worst or (worst[6] >= 0 and (retry < 0 or retry > worst[6])) then
    worst = {1, kind, index, limit, remaining, retry}
  end
end
for i = 1, accounts do
  local a = seen[windows + gates + i]
  expire(a.r)
  local free = a.limit - a.r.spent - a.r.held
  if free < nano or a.limit <= a.r.spent then
    local least, retry = math.max(nano, 1), -1
    if a.r.spent + least <= a.limit then retry = BUSY
    elseif a.us > 0 and least <= a.limit then retry = leaves(a.r, a.r.spent + least - a.limit, a.slot_us) end
    refuse(3, i - 1, a.limit, math.max(free, 0), retry)
  end
end
for i = 1, gates do
  local g = seen[windows + i]
  expire(g.r)
  if g.r.held >= g.limit then refuse(2, i - 1, g.limit, 0, g.limit > 0 and BUSY or -1) end
end
local rooms = {-1, -1, -1, -1, -1, -1}
for i = 1, windows do
  local w = seen[i]
  local amount = w.unit == 0 and 1 or tokens
  local excess = w.r.total + amount - w.limit
  if excess > 0 then
    local retry = -1
    if amount <= w.limit then
      retry = BUSY
      if excess > w.r.held then
        if w.ends_us > 0 then retry = math.max(w.ends_us - now_us, 1)
        else retry = leaves(w.whole and w.r or read(KEYS[i]), excess, w.slot_us) end
      end
    end
    refuse(w.unit, i - 1, w.limit, math.max(w.limit - w.r.total, 0), retry)
  end
end
local function room()
  for i = 1, windows do
    local w = seen[i]
    local remaining, base = math.max(w.limit - w.r.total, 0), w.unit * 3
    if rooms[base + 1] < 0 or remaining < rooms[base + 2] then
      local ends_us = w.ends_us > 0 and w.ends_us or (w.r.last + SLOTS + 1) * w.slot_us
      local reset = w.r.total ~= 0 and math.max(ends_us - now_us, 0) or 0
      rooms[base + 1], rooms[base + 2], rooms[base + 3] = w.limit, remaining, reset
    end
  end
end
local function reply(head)
  room()
  for _, value in ipairs(rooms) do head[#head + 1] = value end
  return head
end
if worst then return reply(worst) end

local slots = {}
local mark = {minute = minute, tokens = tokens, nano = nano}
for i = 1, windows do
  local w = seen[i]
  if w.unit == 1 then mark[field('w', i - 1)] = w.r.last end
  local amount = w.unit == 0 and 1 or tokens
  local name = field('s', w.r.last)
  w.r[name] = (w.r[name] or 0) + amount
  w.r.total = w.r.total + amount
  if w.unit == 1 then w.r.held = w.r.held + tokens end
  slots[#slots + 1] = w.r.last
  write(KEYS[i], w.r, window_ttl(w.us))
end
for i = 1, gates do
  local g = seen[windows + i]
  hold(g.r, minute, 1)
  write(KEYS[windows + i], g.r, HOLD_TTL)
end
for i = 1, accounts do
  local a = seen[windows + gates + i]
  hold(a.r, minute, nano)
  local place = -1
  if a.us > 0 then
    place = a.r.last
    a.r[field('s', place)] = a.r[field('s', place)] or 0
  end
  slots[#slots + 1] = place
  mark[field('g', i - 1)] = a.r.turn or 0
  write(KEYS[windows + gates + i], a.r, ACCOUNT_TTL)
end
enter(mark)
write(KEYS[#KEYS], mark, HOLD_TTL)
local head = reply({0, output, tokens, nano})
for _, slot in ipairs(slots) do head[#head + 1] = slot end
return head
"""
)

SETTLE = (
    COMMON
    + """
local tokens, nano = take(), take()
local mark = read(KEYS[#KEYS])
if mark.done then return {0} end
local tokens_held, nano_held = mark.tokens or 0, mark.nano or 0
local live = mark.minute and mark.minute >= now_minute
local surplus = tokens_held - math.min(tokens, tokens_held)
for i = 1, windows do
  local window_us, slot = take(), mark[field('w', i - 1)]
  local name = slot and field('s', slot)
  local r = slot and some(KEYS[i], 'total', 'held', name) or {}
  if r.total then
    r.held = math.max(r.held - tokens_held, 0)
    if r[name] then
      r[name] = r[name] - surplus
      r.total = r.total - surplus
    end
    write(KEYS[i], r, window_ttl(window_us))
  end
end
free(mark)
if gates > 0 then redis.call('HDEL', KEYS[#KEYS - 1], KEYS[#KEYS]) end
local reply = {1}
for i = 1, accounts do
  local key = KEYS[windows + gates + i]
  local r = read(key)
  if live and r.held then hold(r, mark.minute, -nano_held) end
  local place = take()
  charge(r, mark[field('g', i - 1)], place, nano)
  if next(r) then write(key, r, ACCOUNT_TTL) end
  reply[#reply + 1] = r.spent or -1
end
write(KEYS[#KEYS], {done = 1}, HOLD_TTL)
return reply
"""
)

LOAD = (
    COMMON
    + """
local late, spent, r = take(), take(), read(KEYS[1])
if r.spent or (r.late or 0) ~= late then return {0} end
r.spent = spent
r.turn = (r.turn or 0) + 1
r.held = r.held or 0
while at < #ARGV do
  local name = field('s', take())
  r[name] = (r[name] or 0) + take()
end
write(KEYS[1], r, ACCOUNT_TTL)
return {1}
"""
)

RESTORE = (
    COMMON
    + """
local minute, nano = div(now_us + take(), MINUTE), take()
local mark = read(KEYS[#KEYS])
if mark.done or mark.minute then return {0} end
for i = 1, gates + accounts do
  local r = read(KEYS[i])
  expire(r)
  hold(r, minute, i <= gates and 1 or nano)
  local place = i > gates and take() or -1
  if place >= 0 then r[field('s', place)] = r[field('s', place)] or 0 end
  write(KEYS[i], r, i <= gates and HOLD_TTL or ACCOUNT_TTL)
end
mark = {minute = minute, tokens = 0, nano = nano}
enter(mark)
write(KEYS[#KEYS], mark, HOLD_TTL)
return {1}
"""
)

RENEW = (
    COMMON
    + """
local minute, mark = div(now_us + take(), MINUTE), read(KEYS[#KEYS])
if mark.done or not mark.minute then return {0} end
local held = true
for i = 1, gates do held = held and mark['@' .. KEYS[i]] end
if held and mark.minute == minute then return {1} end
free(mark)
for i = 1, gates + accounts do
  local amount, r = i <= gates and 1 or mark.nano, read(KEYS[i])
  expire(r)
  if i > gates and mark.minute >= now_minute then hold(r, mark.minute, -amount) end
  hold(r, minute, amount)
  write(KEYS[i], r, i <= gates and HOLD_TTL or ACCOUNT_TTL)
end
mark.minute = minute
enter(mark)
write(KEYS[#KEYS], mark, HOLD_TTL)
return {1}
"""
)

LATE = (
    COMMON
    + """
local reply = {}
for i = 1, accounts do reply[i] = read(KEYS[i]).late or 0 end
return reply
"""
)

ADOPT = (
    COMMON
    + """
local nano, mark = take(), read(KEYS[#KEYS])
if mark.done then return {0} end
free(mark)
for i = 1, accounts do
  local r = read(KEYS[i])
  if mark.minute and mark.minute >= now_minute and r.held then hold(r, mark.minute, -mark.nano) end
  charge(r, mark[field('g', i - 1)], take(), nano)
  if next(r) then write(KEYS[i], r, ACCOUNT_TTL) end
end
write(KEYS[#KEYS], {done = 1}, HOLD_TTL)
return {1}
"""
)

RELEASE = (
    COMMON
    + """
local noted, freed = redis.call('HKEYS', KEYS[1]), 0
for i = 1, math.min(take(), #noted) do
  local mark = read(noted[i])
  if mark.minute then
    freed = freed + 1
    free(mark)
    write(noted[i], mark, HOLD_TTL)
  end
  redis.call('HDEL', KEYS[1], noted[i])
end
return {freed, redis.call('HLEN', KEYS[1])}
"""
)

BEAT = (
    COMMON
    + """
local own, dead_us, r, reply = take(), take(), read(KEYS[1]), {}
if (r[field('p', own)] or 0) < now_us - div(dead_us, 3) then r[field('b', own)] = now_us end
r[field('p', own)] = now_us
r[field('c', own)] = nil
for name, beat in pairs(r) do
  local number = part(name, 'p')
  local claim = number and field('c', number)
  if number and math.max(beat, r[field('b', own)], r[claim] or 0) < now_us - dead_us then
    reply[#reply + 1], reply[#reply + 2] = number, beat
  end
end
for i = 1, #reply, 2 do r[field('c', reply[i])] = now_us end
write(KEYS[1], r, ACCOUNT_TTL)
return reply
"""
)

LEAVE = (
    COMMON
    + """
local number, r = take(), read(KEYS[1])
r[field('p', number)], r[field('b', number)], r[field('c', number)] = nil, nil, nil
r.left = (r.left or 0) + 1
write(KEYS[1], r, ACCOUNT_TTL)
return {1}
"""
)

TELL = (
    COMMON
    + """
local slot_us, periodic, r = take(), take(), read(KEYS[1])
r.total, r.held, r.last = r.total or 0, r.held or 0, r.last or 0
if periodic == 0 then r.total = r.total - advance(r, slot_us) end
while at < #ARGV do
  local name, amount = field('s', r.last - take()), take()
  r[name] = (r[name] or 0) + amount
  r.total = r.total + amount
end
write(KEYS[1], r, window_ttl(slot_us * SLOTS))
return {1}
"""
)
