"""The book's decisions as atomic steps over shared records, each said in Lua and in Python.

Records: a window has its slots `s<slot>`, their `total`, what of it is `held`, and the `last` slot; a gate and an
account have what is `held` and its parts `x<minute>` by the minute in which holds expire; an account has what was
`spent`, unless it was not loaded yet; a hold has its `minute`, what it holds and the slots `w<window>` its tokens went
into, or `done` once it has ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from gateway.limits.book import BUSY_RETRY_US, SLOTS
from gateway.state.shared import Argument, Record, Records, Reply, Script

MINUTE_US = 60_000_000
ACCOUNT_TTL_MS = 7 * 86_400_000
HOLD_TTL_MS = 4 * 3_600_000
GRANTED, REFUSED, MISSING = 0, 1, 2
KINDS: tuple[Literal["requests", "tokens", "concurrency", "budget"], ...] = (
    "requests",
    "tokens",
    "concurrency",
    "budget",
)

_COMMON = """
local SLOTS, BUSY, MINUTE, ACCOUNT_TTL, HOLD_TTL = 60, 1000000, 60000000, 604800000, 14400000
local at = 0
local function take() at = at + 1; return tonumber(ARGV[at]) end
local function div(a, b) return math.floor(a / b) end
local function read(key)
  local flat, record = redis.call('HGETALL', key), {}
  for i = 1, #flat, 2 do record[flat[i]] = tonumber(flat[i + 1]) end
  return record
end
local function write(key, record, ttl_ms)
  local flat = {}
  for name, value in pairs(record) do
    flat[#flat + 1] = name
    flat[#flat + 1] = string.format('%.0f', value)
  end
  redis.call('DEL', key)
  redis.call('HSET', key, unpack(flat))
  redis.call('PEXPIRE', key, string.format('%.0f', ttl_ms))
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
local windows, gates, accounts = take(), take(), take()
"""

_ADMIT_LUA = (
    _COMMON
    + """
local minute = div(now_us + take(), MINUTE)
local input_tokens, input_nano, output, choices, unit_nano, output_min = take(), take(), take(), take(), take(), take()
local fits = output
local seen = {}
for i = 1, windows do
  local w = {unit = take(), limit = take(), us = take()}
  w.slot_us = -div(-w.us, SLOTS)
  w.r = read(KEYS[i])
  w.r.total, w.r.held, w.r.last = w.r.total or 0, w.r.held or 0, w.r.last or 0
  w.r.last = math.max(w.r.last, div(now_us, w.slot_us))
  for name, value in pairs(w.r) do
    local slot = part(name, 's')
    if slot and slot < w.r.last - SLOTS then
      w.r.total = w.r.total - value
      w.r[name] = nil
    end
  end
  w.r.held = math.min(w.r.held, w.r.total)
  if w.unit == 1 then fits = math.min(fits, div(w.limit - input_tokens, choices)) end
  seen[i] = w
end
for i = 1, gates do seen[windows + i] = {limit = take(), r = read(KEYS[windows + i])} end
local missing = {2}
for i = 1, accounts do
  local a = {limit = take(), r = read(KEYS[windows + gates + i])}
  if not a.r.spent then missing[#missing + 1] = i - 1 end
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
    local busy = a.r.spent + math.max(nano, 1) <= a.limit
    refuse(3, i - 1, a.limit, math.max(free, 0), busy and BUSY or -1)
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
        local slots, leaves = {}, w.r.last
        for name in pairs(w.r) do slots[#slots + 1] = part(name, 's') end
        table.sort(slots)
        for _, slot in ipairs(slots) do
          leaves = slot
          excess = excess - w.r[field('s', slot)]
          if excess <= 0 then break end
        end
        retry = math.max((leaves + SLOTS + 1) * w.slot_us - now_us, 1)
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
      local reset = w.r.total ~= 0 and math.max((w.r.last + SLOTS + 1) * w.slot_us - now_us, 0) or 0
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
  write(KEYS[windows + gates + i], a.r, ACCOUNT_TTL)
end
write(KEYS[#KEYS], mark, HOLD_TTL)
local head = reply({0, output, tokens, nano})
for _, slot in ipairs(slots) do head[#head + 1] = slot end
return head
"""
)

_SETTLE_LUA = (
    _COMMON
    + """
local tokens, nano = take(), take()
local mark = read(KEYS[#KEYS])
if mark.done then return {0} end
local tokens_held, nano_held = mark.tokens or 0, mark.nano or 0
local live = mark.minute and mark.minute >= now_minute
local surplus = tokens_held - math.min(tokens, tokens_held)
for i = 1, windows do
  local window_us, slot, r = take(), mark[field('w', i - 1)], read(KEYS[i])
  if r.total and slot then
    r.held = math.max(r.held - tokens_held, 0)
    local name = field('s', slot)
    if r[name] then
      r[name] = r[name] - surplus
      r.total = r.total - surplus
    end
    write(KEYS[i], r, window_ttl(window_us))
  end
end
for i = 1, gates do
  local key = KEYS[windows + i]
  local r = read(key)
  if live and r.held then
    hold(r, mark.minute, -1)
    write(key, r, HOLD_TTL)
  end
end
local reply = {1}
for i = 1, accounts do
  local key = KEYS[windows + gates + i]
  local r = read(key)
  if live and r.held then hold(r, mark.minute, -nano_held) end
  if r.spent then r.spent = r.spent + nano end
  if r.held or r.spent then write(key, r, ACCOUNT_TTL) end
  reply[#reply + 1] = r.spent or -1
end
write(KEYS[#KEYS], {done = 1}, HOLD_TTL)
return reply
"""
)

_LOAD_LUA = (
    _COMMON
    + """
local spent, r = take(), read(KEYS[1])
if r.spent then return {0} end
r.spent = spent
r.held = r.held or 0
write(KEYS[1], r, ACCOUNT_TTL)
return {1}
"""
)

_RESTORE_LUA = (
    _COMMON
    + """
local minute, nano = div(now_us + take(), MINUTE), take()
local mark = read(KEYS[#KEYS])
if mark.done or mark.minute then return {0} end
for i = 1, gates + accounts do
  local r = read(KEYS[i])
  expire(r)
  hold(r, minute, i <= gates and 1 or nano)
  write(KEYS[i], r, i <= gates and HOLD_TTL or ACCOUNT_TTL)
end
write(KEYS[#KEYS], {minute = minute, tokens = 0, nano = nano}, HOLD_TTL)
return {1}
"""
)

_RENEW_LUA = (
    _COMMON
    + """
local minute, mark = div(now_us + take(), MINUTE), read(KEYS[#KEYS])
if mark.done or not mark.minute then return {0} end
if mark.minute == minute then return {1} end
for i = 1, gates + accounts do
  local amount, r = i <= gates and 1 or mark.nano, read(KEYS[i])
  expire(r)
  if mark.minute >= now_minute then hold(r, mark.minute, -amount) end
  hold(r, minute, amount)
  write(KEYS[i], r, i <= gates and HOLD_TTL or ACCOUNT_TTL)
end
mark.minute = minute
write(KEYS[#KEYS], mark, HOLD_TTL)
return {1}
"""
)


def _window_ttl_ms(window_us: int) -> int:
    return window_us * 2 // 1000 + 60_000


def _expire(record: Record, now_us: int) -> None:
    record.setdefault("held", 0)
    for name in [name for name in record if name[0] == "x" and int(name[1:]) < now_us // MINUTE_US]:
        record["held"] -= record.pop(name)


def _hold(record: Record, minute: int, amount: int) -> None:
    name = f"x{minute}"
    record["held"] += amount
    record[name] = record.get(name, 0) + amount


class _Window:
    """A window during one step."""

    def __init__(self, key: str, record: Record, unit: int, limit: int, window_us: int, now_us: int) -> None:
        self.key, self.record, self.unit, self.limit, self.window_us = key, record, unit, limit, window_us
        self.slot_us = -(-window_us // SLOTS)
        self.total = record.get("total", 0)
        self.last = record["last"] = max(record.get("last", 0), now_us // self.slot_us)
        for name in [name for name in record if name[0] == "s" and int(name[1:]) < self.last - SLOTS]:
            self.total -= record.pop(name)
        self.held = min(record.get("held", 0), self.total)

    def retry_us(self, amount: int, now_us: int) -> int:
        """-1 when waiting does not help."""
        excess = self.total + amount - self.limit
        if amount > self.limit:
            return -1
        if excess <= self.held:
            return BUSY_RETRY_US
        leaves = self.last
        for slot in sorted(int(name[1:]) for name in self.record if name[0] == "s"):
            leaves = slot
            excess -= self.record[f"s{slot}"]
            if excess <= 0:
                break
        return max((leaves + SLOTS + 1) * self.slot_us - now_us, 1)

    def add(self, records: Records, amount: int) -> None:
        name = f"s{self.last}"
        self.record[name] = self.record.get(name, 0) + amount
        self.total += amount
        self.held += amount if self.unit else 0
        self.record |= {"total": self.total, "held": self.held}
        records.write(self.key, self.record, _window_ttl_ms(self.window_us))


def _rooms(windows: Sequence[_Window], now_us: int) -> Reply:
    """(limit, remaining, reset) of the tightest request rate, then of the tightest token rate; -1: none."""
    rooms = [-1] * 6
    for one in windows:
        base, remaining = one.unit * 3, max(one.limit - one.total, 0)
        if rooms[base] < 0 or remaining < rooms[base + 1]:
            reset = max((one.last + SLOTS + 1) * one.slot_us - now_us, 0) if one.total else 0
            rooms[base : base + 3] = [one.limit, remaining, reset]
    return rooms


def _longer(worst: Reply, new: Reply) -> Reply:
    return new if not worst or (worst[5] >= 0 and (new[5] < 0 or new[5] > worst[5])) else worst


def _admit(records: Records, keys: Sequence[str], arguments: Sequence[Argument]) -> Reply:
    n_windows, n_gates, _, ttl_us, *rest = map(int, arguments)
    input_tokens, input_nano, output, choices, unit_nano, output_min, *rest = rest
    now_us = records.now_us
    windows = [
        _Window(key, records.read(key) or {}, rest[3 * i], rest[3 * i + 1], rest[3 * i + 2], now_us)
        for i, key in enumerate(keys[:n_windows])
    ]
    gate_limits, limits = rest[3 * n_windows : 3 * n_windows + n_gates], rest[3 * n_windows + n_gates :]
    gates = [records.read(key) or {} for key in keys[n_windows : n_windows + n_gates]]
    accounts = [records.read(key) or {} for key in keys[n_windows + n_gates : -1]]
    if missing := [i for i, account in enumerate(accounts) if "spent" not in account]:
        return [MISSING, *missing]
    fits = [(one.limit - input_tokens) // choices for one in windows if one.unit]
    if unit_nano:
        left = (limit - account["spent"] - input_nano for limit, account in zip(limits, accounts, strict=True))
        fits += [nano // unit_nano for nano in left]
    if output_min >= 0:
        output = min(output, max(min(fits, default=output), output_min))
    tokens, nano = input_tokens + output * choices, input_nano + output * unit_nano
    worst: Reply = []
    for i, (limit, account) in enumerate(zip(limits, accounts, strict=True)):
        _expire(account, now_us)
        free = limit - account["spent"] - account["held"]
        if free < nano or limit <= account["spent"]:
            retry = BUSY_RETRY_US if account["spent"] + max(nano, 1) <= limit else -1
            worst = _longer(worst, [REFUSED, 3, i, limit, max(free, 0), retry])
    for i, (limit, gate) in enumerate(zip(gate_limits, gates, strict=True)):
        _expire(gate, now_us)
        if gate["held"] >= limit:
            worst = _longer(worst, [REFUSED, 2, i, limit, 0, BUSY_RETRY_US if limit else -1])
    for i, one in enumerate(windows):
        amount = tokens if one.unit else 1
        if one.total + amount > one.limit:
            left_over = max(one.limit - one.total, 0)
            worst = _longer(worst, [REFUSED, one.unit, i, one.limit, left_over, one.retry_us(amount, now_us)])
    if worst:
        return worst + _rooms(windows, now_us)
    minute = (now_us + ttl_us) // MINUTE_US
    for one in windows:
        one.add(records, tokens if one.unit else 1)
    for key, gate in zip(keys[n_windows:], gates, strict=False):
        _hold(gate, minute, 1)
        records.write(key, gate, HOLD_TTL_MS)
    for key, account in zip(keys[n_windows + n_gates :], accounts, strict=False):
        _hold(account, minute, nano)
        records.write(key, account, ACCOUNT_TTL_MS)
    mark = {"minute": minute, "tokens": tokens, "nano": nano}
    records.write(keys[-1], mark | {f"w{i}": one.last for i, one in enumerate(windows) if one.unit}, HOLD_TTL_MS)
    return [GRANTED, output, tokens, nano, *_rooms(windows, now_us), *(one.last for one in windows)]


def _settle(records: Records, keys: Sequence[str], arguments: Sequence[Argument]) -> Reply:
    n_windows, n_gates, _, tokens, nano, *windows_us = map(int, arguments)
    mark = records.read(keys[-1]) or {}
    if "done" in mark:
        return [0]
    live = "minute" in mark and mark["minute"] >= records.now_us // MINUTE_US
    tokens_held, nano_held = mark.get("tokens", 0), mark.get("nano", 0)
    surplus = tokens_held - min(tokens, tokens_held)
    for i, key in enumerate(keys[:n_windows]):
        slot = mark.get(f"w{i}")
        if slot is not None and (window := records.read(key)) is not None:
            window["held"] = max(window["held"] - tokens_held, 0)
            if f"s{slot}" in window:
                window[f"s{slot}"] -= surplus
                window["total"] -= surplus
            records.write(key, window, _window_ttl_ms(windows_us[i]))
    for key in keys[n_windows : n_windows + n_gates]:
        if live and (gate := records.read(key)) is not None:
            _hold(gate, mark["minute"], -1)
            records.write(key, gate, HOLD_TTL_MS)
    reply = [1]
    for key in keys[n_windows + n_gates : -1]:
        account = records.read(key) or {}
        if live and "held" in account:
            _hold(account, mark["minute"], -nano_held)
        if "spent" in account:
            account["spent"] += nano
        if account:
            records.write(key, account, ACCOUNT_TTL_MS)
        reply.append(account.get("spent", -1))
    records.write(keys[-1], {"done": 1}, HOLD_TTL_MS)
    return reply


def _load(records: Records, keys: Sequence[str], arguments: Sequence[Argument]) -> Reply:
    account = records.read(keys[0]) or {}
    if "spent" in account:
        return [0]
    records.write(keys[0], {"held": 0, **account, "spent": int(arguments[3])}, ACCOUNT_TTL_MS)
    return [1]


def _restore(records: Records, keys: Sequence[str], arguments: Sequence[Argument]) -> Reply:
    _, n_gates, _, ttl_us, nano = map(int, arguments)
    if records.read(keys[-1]) is not None:
        return [0]
    minute = (records.now_us + ttl_us) // MINUTE_US
    for i, key in enumerate(keys[:-1]):
        record = records.read(key) or {}
        _expire(record, records.now_us)
        _hold(record, minute, 1 if i < n_gates else nano)
        records.write(key, record, HOLD_TTL_MS if i < n_gates else ACCOUNT_TTL_MS)
    records.write(keys[-1], {"minute": minute, "tokens": 0, "nano": nano}, HOLD_TTL_MS)
    return [1]


def _renew(records: Records, keys: Sequence[str], arguments: Sequence[Argument]) -> Reply:
    _, n_gates, _, ttl_us = map(int, arguments)
    now_us, mark = records.now_us, records.read(keys[-1]) or {}
    minute = (now_us + ttl_us) // MINUTE_US
    if "done" in mark or "minute" not in mark:
        return [0]
    if mark["minute"] == minute:
        return [1]
    for i, key in enumerate(keys[:-1]):
        amount, record = 1 if i < n_gates else mark["nano"], records.read(key) or {}
        _expire(record, now_us)
        if mark["minute"] >= now_us // MINUTE_US:
            _hold(record, mark["minute"], -amount)
        _hold(record, minute, amount)
        records.write(key, record, HOLD_TTL_MS if i < n_gates else ACCOUNT_TTL_MS)
    records.write(keys[-1], mark | {"minute": minute}, HOLD_TTL_MS)
    return [1]


ADMIT = Script("limits-admit", 1, _ADMIT_LUA, _admit)
SETTLE = Script("limits-settle", 1, _SETTLE_LUA, _settle)
LOAD = Script("limits-load", 1, _LOAD_LUA, _load)
RESTORE = Script("limits-restore", 1, _RESTORE_LUA, _restore)
RENEW = Script("limits-renew", 1, _RENEW_LUA, _renew)
