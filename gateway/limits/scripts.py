"""The book's decisions as atomic steps over shared records, each said in Lua and in Python.

Records: a window has its slots `s<slot>`, their `total`, what of it is `held`, and the `last` slot; a gate and an
account have what is `held` and its parts `x<minute>` by the minute in which holds expire; an account has what was
`spent`, unless it was not loaded yet, and where it has a window by slot; a hold has its `minute`, what it holds and the
slots `w<window>` its tokens went into and a field `@<key>` for each gate it is in, or `done` once it has ended; the
processes have their last beats `p<process>`, since when they beat without a gap `b<process>`, and `c<process>`, when
another one took up what a dead one left; and each process has a record whose fields are the keys of its holds that are
in gates, so that another one finds them when it has died.

An account is loaded with what the ledger had at some moment, and nobody can say whether a charge that is told now was
in that already. So an account counts the `turn`s in which it was loaded, and a hold notes them as `g<account>`. What is
charged in a later turn, or to an account that is not loaded, is not added: it makes the account `late`, which undoes a
load that began before it, and unloaded, so that the next request reads it anew. The ledger has the charge by then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from gateway.limits import lua
from gateway.limits.windows import BUSY_RETRY_US, SLOTS, slot_length_us
from gateway.state.shared import Argument, Record, Records, Reply, Script

MINUTE_US = 60_000_000
ACCOUNT_TTL_MS = 7 * 86_400_000
HOLD_TTL_MS = 4 * 3_600_000
# Holds of a process past this many are not noted: those would run out by themselves if it died.
NOTED_MAX = 10_000
GRANTED, REFUSED, MISSING = 0, 1, 2
KINDS: tuple[Literal["requests", "tokens", "concurrency", "budget"], ...] = (
    "requests",
    "tokens",
    "concurrency",
    "budget",
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


def _enter(records: Records, keys: Sequence[str], gates: Sequence[str], mark: Record) -> None:
    """Name the gates of a hold in its mark, and note it among those of its process."""
    mark |= {f"@{key}": 1 for key in gates}
    noted = records.read(keys[-2]) or {}
    if gates and len(noted) < NOTED_MAX:
        records.write(keys[-2], noted | {keys[-1]: 1}, HOLD_TTL_MS)


def _free(records: Records, mark: Record) -> None:
    """Take a hold out of its gates."""
    for name in [name for name in mark if name[0] == "@"]:
        gate = records.read(name[1:])
        if gate is not None and mark["minute"] >= records.now_us // MINUTE_US:
            _hold(gate, mark["minute"], -1)
            records.write(name[1:], gate, HOLD_TTL_MS)
        del mark[name]


def _forget(records: Records, noted_key: str, hold_key: str) -> int:
    """Note a hold no longer; how many its process still has."""
    noted = records.read(noted_key) or {}
    noted.pop(hold_key, None)
    if noted:
        records.write(noted_key, noted, HOLD_TTL_MS)
    else:
        records.delete(noted_key)
    return len(noted)


def _is_slot(name: str) -> bool:
    return name[0] == "s" and name[1:].isdecimal()


def _charge(account: Record, turn: int | None, place: int, nano: int) -> Record:
    """The account with what was paid, or unloaded where that may have been read already."""
    if nano > 0 and ("spent" not in account or turn != account.get("turn", 0)):
        account = {name: value for name, value in account.items() if name != "spent" and not _is_slot(name)}
        return account | {"late": account.get("late", 0) + 1}
    if "spent" in account and (place < 0 or f"s{place}" in account):
        account["spent"] += nano
        if place >= 0:
            account[f"s{place}"] += nano
    return account


def _slots(record: Record) -> list[int]:
    return sorted(int(name[1:]) for name in record if _is_slot(name))


def _advance(record: Record, slot_us: int, now_us: int) -> int:
    """Drop the slots that have left the window; what was in them."""
    last = record["last"] = max(record.get("last", 0), now_us // slot_us)
    return sum(record.pop(f"s{slot}") for slot in _slots(record) if slot < last - SLOTS)


def _leaves_us(record: Record, excess: int, slot_us: int, now_us: int) -> int:
    """How long until `excess` has left the window."""
    last = record["last"]
    for slot in _slots(record):
        last = slot
        excess -= record[f"s{slot}"]
        if excess <= 0:
            break
    return max((last + SLOTS + 1) * slot_us - now_us, 1)


class _Account:
    """A loaded account during one step."""

    def __init__(self, key: str, record: Record, limit: int, window_us: int, now_us: int) -> None:
        self.key, self.record, self.limit, self.window_us = key, record, limit, window_us
        self.slot_us = slot_length_us(window_us)
        if window_us:
            record["spent"] -= _advance(record, self.slot_us, now_us)
        self.spent = record["spent"]

    def refuse(self, nano: int, now_us: int) -> tuple[int, int] | None:
        """What is left and when to come again, when there is no room."""
        _expire(self.record, now_us)
        free, least = self.limit - self.spent - self.record["held"], max(nano, 1)
        if free >= nano and self.spent < self.limit:
            return None
        if self.spent + least <= self.limit:
            return max(free, 0), BUSY_RETRY_US
        if not self.window_us or least > self.limit:
            return max(free, 0), -1
        return max(free, 0), _leaves_us(self.record, self.spent + least - self.limit, self.slot_us, now_us)

    def hold(self, records: Records, minute: int, nano: int) -> int:
        """Hold an amount; the slot in which it will have been spent, -1 without a window."""
        _hold(self.record, minute, nano)
        place = self.record["last"] if self.window_us else -1
        if place >= 0:
            self.record.setdefault(f"s{place}", 0)
        records.write(self.key, self.record, ACCOUNT_TTL_MS)
        return place


class _Window:
    """A window, or with `ends_us` a calendar period, during one step."""

    def __init__(self, key: str, record: Record, arguments: Sequence[int], now_us: int) -> None:
        self.key, self.record = key, record
        self.unit, self.limit, self.window_us, self.ends_us = arguments
        self.slot_us = slot_length_us(self.window_us)
        self.total = record.get("total", 0)
        record.setdefault("last", 0)
        if not self.ends_us:
            self.total -= _advance(record, self.slot_us, now_us)
        self.last = record["last"]
        self.held = min(record.get("held", 0), self.total)

    def retry_us(self, amount: int, now_us: int) -> int:
        """-1 when waiting does not help."""
        excess = self.total + amount - self.limit
        if amount > self.limit:
            return -1
        if excess <= self.held:
            return BUSY_RETRY_US
        if self.ends_us:
            return max(self.ends_us - now_us, 1)
        return _leaves_us(self.record, excess, self.slot_us, now_us)

    def reset_us(self, now_us: int) -> int:
        ends_us = self.ends_us or (self.last + SLOTS + 1) * self.slot_us
        return max(ends_us - now_us, 0) if self.total else 0

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
            rooms[base : base + 3] = [one.limit, remaining, one.reset_us(now_us)]
    return rooms


def _longer(worst: Reply, new: Reply) -> Reply:
    return new if not worst or (worst[5] >= 0 and (new[5] < 0 or new[5] > worst[5])) else worst


def _admit(records: Records, keys: Sequence[str], arguments: Sequence[Argument]) -> Reply:
    n_windows, n_gates, n_accounts, ttl_us, *rest = map(int, arguments)
    input_tokens, input_nano, output, choices, unit_nano, output_min, *rest = rest
    now_us = records.now_us
    windows = [
        _Window(key, records.read(key) or {}, rest[4 * i : 4 * i + 4], now_us) for i, key in enumerate(keys[:n_windows])
    ]
    gate_limits, rest = rest[4 * n_windows : 4 * n_windows + n_gates], rest[4 * n_windows + n_gates :]
    gates = [records.read(key) or {} for key in keys[n_windows : n_windows + n_gates]]
    found = [records.read(key) or {} for key in keys[n_windows + n_gates : -2]]
    if missing := [i for i, account in enumerate(found) if "spent" not in account]:
        return [MISSING, *missing]
    accounts = [
        _Account(keys[n_windows + n_gates + i], found[i], rest[2 * i], rest[2 * i + 1], now_us)
        for i in range(n_accounts)
    ]
    fits = [(one.limit - input_tokens) // choices for one in windows if one.unit]
    if unit_nano:
        fits += [(one.limit - one.spent - input_nano) // unit_nano for one in accounts]
    if output_min >= 0:
        output = min(output, max(min(fits, default=output), output_min))
    tokens, nano = input_tokens + output * choices, input_nano + output * unit_nano
    worst = _worst(windows, list(zip(gate_limits, gates, strict=True)), accounts, (tokens, nano), now_us)
    if worst:
        return worst + _rooms(windows, now_us)
    minute = (now_us + ttl_us) // MINUTE_US
    for one in windows:
        one.add(records, tokens if one.unit else 1)
    for key, gate in zip(keys[n_windows:], gates, strict=False):
        _hold(gate, minute, 1)
        records.write(key, gate, HOLD_TTL_MS)
    places = [account.hold(records, minute, nano) for account in accounts]
    mark = {"minute": minute, "tokens": tokens, "nano": nano}
    mark |= {f"g{i}": account.record.get("turn", 0) for i, account in enumerate(accounts)}
    mark |= {f"w{i}": one.last for i, one in enumerate(windows) if one.unit}
    _enter(records, keys, keys[n_windows : n_windows + n_gates], mark)
    records.write(keys[-1], mark, HOLD_TTL_MS)
    return [GRANTED, output, tokens, nano, *_rooms(windows, now_us), *(one.last for one in windows), *places]


def _worst(
    windows: Sequence[_Window],
    gates: Sequence[tuple[int, Record]],
    accounts: Sequence[_Account],
    amounts: tuple[int, int],
    now_us: int,
) -> Reply:
    """The refusal that lasts longest; empty when there is room for the tokens and the nano-USD of `amounts`."""
    tokens, nano = amounts
    worst: Reply = []
    for i, account in enumerate(accounts):
        if (refused := account.refuse(nano, now_us)) is not None:
            worst = _longer(worst, [REFUSED, 3, i, account.limit, *refused])
    for i, (limit, gate) in enumerate(gates):
        _expire(gate, now_us)
        if gate["held"] >= limit:
            worst = _longer(worst, [REFUSED, 2, i, limit, 0, BUSY_RETRY_US if limit else -1])
    for i, one in enumerate(windows):
        amount = tokens if one.unit else 1
        if one.total + amount > one.limit:
            left_over = max(one.limit - one.total, 0)
            worst = _longer(worst, [REFUSED, one.unit, i, one.limit, left_over, one.retry_us(amount, now_us)])
    return worst


def _settle(records: Records, keys: Sequence[str], arguments: Sequence[Argument]) -> Reply:
    n_windows, n_gates, _, tokens, nano, *rest = map(int, arguments)
    windows_us, places = rest[:n_windows], rest[n_windows:]
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
    _free(records, mark)
    _forget(records, keys[-2], keys[-1])
    reply = [1]
    for i, (key, place) in enumerate(zip(keys[n_windows + n_gates : -2], places, strict=True)):
        account = records.read(key) or {}
        if live and "held" in account:
            _hold(account, mark["minute"], -nano_held)
        account = _charge(account, mark.get(f"g{i}"), place, nano)
        if account:
            records.write(key, account, ACCOUNT_TTL_MS)
        reply.append(account.get("spent", -1))
    records.write(keys[-1], {"done": 1}, HOLD_TTL_MS)
    return reply


def _load(records: Records, keys: Sequence[str], arguments: Sequence[Argument]) -> Reply:
    account = records.read(keys[0]) or {}
    _, _, _, late, spent, *slots = map(int, arguments)
    if "spent" in account or account.get("late", 0) != late:
        return [0]
    account = {"held": 0, **account, "spent": spent, "turn": account.get("turn", 0) + 1}
    for slot, nano in zip(slots[::2], slots[1::2], strict=True):
        account[f"s{slot}"] = account.get(f"s{slot}", 0) + int(nano)
    records.write(keys[0], account, ACCOUNT_TTL_MS)
    return [1]


def _restore(records: Records, keys: Sequence[str], arguments: Sequence[Argument]) -> Reply:
    _, n_gates, _, ttl_us, nano, *places = map(int, arguments)
    if records.read(keys[-1]) is not None:
        return [0]
    minute = (records.now_us + ttl_us) // MINUTE_US
    for i, key in enumerate(keys[:-2]):
        record = records.read(key) or {}
        _expire(record, records.now_us)
        _hold(record, minute, 1 if i < n_gates else nano)
        if i >= n_gates and places[i - n_gates] >= 0:
            record.setdefault(f"s{places[i - n_gates]}", 0)
        records.write(key, record, HOLD_TTL_MS if i < n_gates else ACCOUNT_TTL_MS)
    mark = {"minute": minute, "tokens": 0, "nano": nano}
    _enter(records, keys, keys[:n_gates], mark)
    records.write(keys[-1], mark, HOLD_TTL_MS)
    return [1]


def _renew(records: Records, keys: Sequence[str], arguments: Sequence[Argument]) -> Reply:
    _, n_gates, _, ttl_us = map(int, arguments)
    now_us, mark = records.now_us, records.read(keys[-1]) or {}
    minute = (now_us + ttl_us) // MINUTE_US
    if "done" in mark or "minute" not in mark:
        return [0]
    if mark["minute"] == minute and all(f"@{key}" in mark for key in keys[:n_gates]):
        return [1]
    _free(records, mark)
    for i, key in enumerate(keys[:-2]):
        amount, record = 1 if i < n_gates else mark["nano"], records.read(key) or {}
        _expire(record, now_us)
        if i >= n_gates and mark["minute"] >= now_us // MINUTE_US:
            _hold(record, mark["minute"], -amount)
        _hold(record, minute, amount)
        records.write(key, record, HOLD_TTL_MS if i < n_gates else ACCOUNT_TTL_MS)
    mark["minute"] = minute
    _enter(records, keys, keys[:n_gates], mark)
    records.write(keys[-1], mark, HOLD_TTL_MS)
    return [1]


def _late(records: Records, keys: Sequence[str], arguments: Sequence[Argument]) -> Reply:
    return [(records.read(key) or {}).get("late", 0) for key in keys]


def _adopt(records: Records, keys: Sequence[str], arguments: Sequence[Argument]) -> Reply:
    nano, *places = map(int, arguments[3:])
    mark = records.read(keys[-1]) or {}
    if "done" in mark:
        return [0]
    _free(records, mark)
    for i, (key, place) in enumerate(zip(keys[:-1], places, strict=True)):
        account = records.read(key) or {}
        if mark.get("minute", -1) >= records.now_us // MINUTE_US and "held" in account:
            _hold(account, mark["minute"], -mark["nano"])
        account = _charge(account, mark.get(f"g{i}"), place, nano)
        if account:
            records.write(key, account, ACCOUNT_TTL_MS)
    records.write(keys[-1], {"done": 1}, HOLD_TTL_MS)
    return [1]


def _release(records: Records, keys: Sequence[str], arguments: Sequence[Argument]) -> Reply:
    noted, freed, left = list(records.read(keys[0]) or {}), 0, 0
    for key in noted[: int(arguments[3])]:
        mark = records.read(key) or {}
        if "minute" in mark:
            freed += 1
            _free(records, mark)
            records.write(key, mark, HOLD_TTL_MS)
        left = _forget(records, keys[0], key)
    return [freed, left]


def _beat(records: Records, keys: Sequence[str], arguments: Sequence[Argument]) -> Reply:
    own, dead_us = map(int, arguments[3:])
    now_us, record = records.now_us, records.read(keys[0]) or {}
    if record.get(f"p{own}", 0) < now_us - dead_us // 3:
        record[f"b{own}"] = now_us
    record[f"p{own}"] = now_us
    record.pop(f"c{own}", None)
    since_us = record[f"b{own}"]
    beats = {int(name[1:]): beat for name, beat in record.items() if name[0] == "p"}
    dead = [one for one, beat in beats.items() if max(beat, since_us, record.get(f"c{one}", 0)) < now_us - dead_us]
    record |= {f"c{one}": now_us for one in dead}
    records.write(keys[0], record, ACCOUNT_TTL_MS)
    return [value for one in dead for value in (one, beats[one])]


def _leave(records: Records, keys: Sequence[str], arguments: Sequence[Argument]) -> Reply:
    number, record = int(arguments[3]), records.read(keys[0]) or {}
    kept = {name: value for name, value in record.items() if name not in (f"p{number}", f"b{number}", f"c{number}")}
    records.write(keys[0], kept | {"left": kept.get("left", 0) + 1}, ACCOUNT_TTL_MS)
    return [1]


def _tell(records: Records, keys: Sequence[str], arguments: Sequence[Argument]) -> Reply:
    slot_us, periodic, *told = map(int, arguments[3:])
    window = {"total": 0, "held": 0, "last": 0} | (records.read(keys[0]) or {})
    if not periodic:
        window["total"] -= _advance(window, slot_us, records.now_us)
    for age, amount in zip(told[::2], told[1::2], strict=True):
        name = f"s{window['last'] - age}"
        window[name] = window.get(name, 0) + amount
        window["total"] += amount
    records.write(keys[0], window, _window_ttl_ms(slot_us * SLOTS))
    return [1]


ADMIT = Script("limits-admit", 4, lua.ADMIT, _admit)
SETTLE = Script("limits-settle", 4, lua.SETTLE, _settle)
LATE = Script("limits-late", 1, lua.LATE, _late)
LOAD = Script("limits-load", 3, lua.LOAD, _load)
ADOPT = Script("limits-adopt", 2, lua.ADOPT, _adopt)
RELEASE = Script("limits-release", 1, lua.RELEASE, _release)
BEAT = Script("limits-beat", 2, lua.BEAT, _beat)
TELL = Script("limits-tell", 1, lua.TELL, _tell)
LEAVE = Script("limits-leave", 2, lua.LEAVE, _leave)
RESTORE = Script("limits-restore", 3, lua.RESTORE, _restore)
RENEW = Script("limits-renew", 2, lua.RENEW, _renew)
