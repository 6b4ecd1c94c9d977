"""The counters behind all limits as one pure state machine: no I/O, no clock, integers only.

`admit` decides over every scope of a request at once and either holds its worst case everywhere or changes nothing.
Exactly one of `settle` and `expire` ends a hold. A charge is never above what was held, so an account is never
overspent, whatever a model reports. Money is nano-USD, time microseconds.

A sliding window is 60 slots. What was counted leaves the window with its slot, at most one slot late, so no interval of
the window's length ever sees more than the limit. Calendar periods are part of the names: a new period is a new counter
or account, and a late settle lands in the one that held it. Each slot of a budget's window is a durable account too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

import msgspec
from msgspec.structs import replace

from gateway.limits.bound import NEVER_US, Bound, Place
from gateway.limits.windows import BUSY_RETRY_US, SLOTS, Account, Room, SavedWindow, Window

# Redis counts in doubles, which are exact up to here: nine million dollars in one account.
NANO_MAX = 2**53 - 1
# Periods that are over are remembered for a day, in case the clock is set back.
KEPT_US = 86_400_000_000
# Limits of which the counters are known together.
BOUND_MAX = 10_000

Unit = Literal["requests", "tokens"]


class Rate(msgspec.Struct, frozen=True):
    """At most `limit` requests or tokens in any `window_us`, or in the calendar period that ends at `ends_us`.

    `key` names what is counted, window or period included.
    """

    key: str
    unit: Unit
    limit: int
    window_us: int
    ends_us: int | None = None


Windows = list[tuple[Rate, Window]]


class Gate(msgspec.Struct, frozen=True):
    """At most `limit` requests at the same time."""

    key: str
    limit: int


class Budget(msgspec.Struct, frozen=True):
    """At most `limit_nano` out of an account, or with `window_us` out of it in any time of that length."""

    account: str
    limit_nano: int
    window_us: int | None = None


class Ask(msgspec.Struct, frozen=True, gc=False):
    """A request's worst case: its input, and `output_tokens` for each of `choices` answers.

    `unit_nano` is what one more token in every choice costs at most. `output_tokens_min`, when given, allows the output
    to be cut to what the limits still have, but not below it. The hold ends by itself at `expires_us`. Rates and holds
    follow a clock that is never set, `now_us`; calendar periods and budgets follow the time of day, `wall_us`.
    """

    id: str
    now_us: int
    expires_us: int
    wall_us: int = 0
    rates: tuple[Rate, ...] = ()
    gates: tuple[Gate, ...] = ()
    budgets: tuple[Budget, ...] = ()
    input_tokens: int = 0
    input_nano: int = 0
    output_tokens: int = 0
    choices: int = 1
    unit_nano: int = 0
    output_tokens_min: int | None = None


class Grant(msgspec.Struct, frozen=True, gc=False):
    """What a request holds. `output_tokens` per choice may be less than it asked for.

    `places` has for each of `accounts` its slot, where that has a window; `durable_accounts` is what the ledger calls
    them.
    """

    id: str
    expires_us: int
    output_tokens: int
    tokens: int
    nano: int
    slots: tuple[tuple[str, int], ...]
    gates: tuple[str, ...]
    accounts: tuple[str, ...]
    places: tuple[int | None, ...] = ()
    durable_accounts: tuple[str, ...] = ()
    requests_room: Room | None = None
    tokens_room: Room | None = None


class Refusal(msgspec.Struct, frozen=True):
    """Why a request may not run now. `retry_us` is when it could, None when waiting does not help.

    `key` is the binding limit. For a budget `remaining` is what was neither spent nor held, and `resets_us` is when its
    next period begins.
    """

    kind: Literal["requests", "tokens", "concurrency", "budget"]
    key: str
    limit: int
    remaining: int
    retry_us: int | None
    resets_us: int | None = None
    requests_room: Room | None = None
    tokens_room: Room | None = None


class Missing(msgspec.Struct, frozen=True):
    """Accounts that must be `load`ed before the decision can be made."""

    accounts: tuple[str, ...]


class Charged(msgspec.Struct, frozen=True, gc=False):
    """What one account paid and what has been spent from it since."""

    account: str
    nano: int
    spent_nano: int


class NotHeld(Exception):
    """The hold was settled or has expired, or never was."""


class Book:
    """All counters. Every method is one atomic step. Time never goes back: an earlier moment is the latest seen."""

    def __init__(self) -> None:
        self._now_us = 0
        self._wall_us = 0
        self._windows: dict[str, Window] = {}
        self._places: dict[str, Place] = {}
        self._accounts: dict[str, Account] = {}
        self._holds: dict[str, tuple[Grant, Bound]] = {}
        # By the ids of a request's rates, gates and budgets.
        self._bound: dict[tuple[int, int, int], Bound] = {}
        # No hold ends by itself before this.
        self._expires_us = NEVER_US

    def load(
        self, account: str, spent_nano: int, window_us: int | None = None, slots: Mapping[int, int] | None = None
    ) -> None:
        """Make an account known, one with a window by what was spent in its slots. One that is known already keeps its
        counters, which are newer."""
        if account not in self._accounts:
            window = None
            if window_us is not None:
                window = Window(window_us)
                window.fill(slots or {})
            self._accounts[account] = Account(spent_nano, self._now_us, window)

    def unload(self, account: str) -> bool:
        """Forget an account that nothing is held of; its durable sum has to be complete. False: something is held."""
        found = self._accounts.get(account)
        if found is None or found.holders:
            return False
        del self._accounts[account]
        self._bound.clear()
        return True

    def admit(self, ask: Ask) -> Grant | Refusal | Missing:
        """Hold the worst case of a request in all its scopes, or say what is in the way and change nothing.

        All requests pay for this, so it is arithmetic without a call for what has room.
        """
        if ask.id in self._holds:
            raise ValueError("a request is admitted once")
        now_us = self._see(ask)
        bound = self._bound.get((id(ask.rates), id(ask.gates), id(ask.budgets))) or self._bind(ask)
        if bound is None:
            return Missing(tuple([one.account for one in ask.budgets if one.account not in self._accounts]))
        if now_us >= bound.turns_us:
            bound.turn(now_us)
        if bound.slides:
            bound.slide(ask.wall_us)
        output_tokens = ask.output_tokens if ask.output_tokens_min is None else self._cut(ask, ask.output_tokens_min)
        tokens = ask.input_tokens + output_tokens * ask.choices
        nano = ask.input_nano + output_tokens * ask.unit_nano
        fits = True
        for account, limit_nano in bound.accounts:
            left_nano = limit_nano - account.spent
            if left_nano <= 0 or left_nano - account.held < nano:
                fits = False
        for place, limit in bound.gates:
            if place.running >= limit:
                fits = False
        for window, limit in bound.requests:
            if window.total >= limit:
                fits = False
        for window, limit in bound.tokens:
            if window.total + tokens > limit:
                fits = False
        if fits:
            return self._hold(ask, bound, output_tokens, tokens, nano)
        refusal = self._refuse(ask, self._windows_of(ask.rates), tokens, nano)
        assert refusal is not None, "something is in the way"
        return refusal

    def _bind(self, ask: Ask) -> Bound | None:
        """Find the counters of a request's limits, for all that have the same; None where an account is missing."""
        if any(budget.account not in self._accounts for budget in ask.budgets):
            return None
        windows = self._windows_of(ask.rates)
        bound = Bound(
            (ask.rates, ask.gates, ask.budgets),
            [(one.account, self._accounts[one.account], one.limit_nano) for one in ask.budgets],
            [(one.key, self._places.setdefault(one.key, Place()), one.limit) for one in ask.gates],
            [(window, rate.limit) for rate, window in windows if rate.unit == "requests"],
            [(rate.key, window, rate.limit) for rate, window in windows if rate.unit == "tokens"],
        )
        if len(self._bound) >= BOUND_MAX:
            self._bound.clear()
        self._bound[id(ask.rates), id(ask.gates), id(ask.budgets)] = bound
        return bound

    def refusal(self, ask: Ask) -> Refusal | None:
        """What would be in the way of a request without budgets."""
        self._see(ask)
        output_tokens = ask.output_tokens if ask.output_tokens_min is None else self._cut(ask, ask.output_tokens_min)
        tokens = ask.input_tokens + output_tokens * ask.choices
        return self._refuse(ask, self._windows_of(ask.rates), tokens, 0)

    def _see(self, ask: Ask) -> int:
        """Now, as a request sees it."""
        if ask.now_us > self._now_us:
            self._now_us = ask.now_us
        self._wall_us = ask.wall_us
        return self._now_us

    def count(self, ask: Ask, tokens: int) -> tuple[tuple[str, int], ...]:
        """Count in its rates a request that was let in elsewhere; the slots its tokens are in."""
        self._see(ask)
        slots = []
        for rate, window in self._windows_of(ask.rates):
            if rate.unit == "requests":
                window.add(1)
            else:
                slots.append((rate.key, window.add(tokens)))
        return tuple(slots)

    def uncount(self, slots: tuple[tuple[str, int], ...], surplus: int) -> None:
        """Such a request used less."""
        for key, slot in slots:
            if (window := self._windows.get(key)) is not None:
                window.change(slot, -surplus)

    def windows(self, now_us: int) -> Iterator[tuple[str, Window]]:
        """The windows as they are now."""
        self._now_us = max(self._now_us, now_us)
        for key, window in self._windows.items():
            window.advance(self._now_us)
            yield key, window

    def window(self, key: str) -> Window | None:
        """What is counted of a rate, as of the last time somebody asked; None: nothing is."""
        return self._windows.get(key)

    def _windows_of(self, rates: tuple[Rate, ...]) -> Windows:
        """The windows of rates as they are now."""
        now_us, known, windows = self._now_us, self._windows, []
        for rate in rates:
            window = known.get(rate.key)
            if window is None:
                window = known[rate.key] = Window(rate.window_us, rate.ends_us)
            if now_us // window.slot_us > window.last:
                window.advance(now_us)
            windows.append((rate, window))
        return windows

    def _cut(self, ask: Ask, output_tokens_min: int) -> int:
        """Output tokens per choice that no limit rules out for good, but as many as it has to have.

        What others hold does not shorten an answer: they may give it back, so that the request had better wait.
        """
        fits = ask.output_tokens
        for rate in ask.rates:
            if rate.unit == "tokens":
                fits = min(fits, (rate.limit - ask.input_tokens) // ask.choices)
        if ask.unit_nano:
            for budget in ask.budgets:
                left = budget.limit_nano - self._accounts[budget.account].spent - ask.input_nano
                fits = min(fits, left // ask.unit_nano)
        return min(ask.output_tokens, max(fits, output_tokens_min))

    def _refuse(self, ask: Ask, windows: Windows, tokens: int, nano: int) -> Refusal | None:
        """The limit that is in the way the longest, None when all have room. A spent budget outlasts any wait."""
        worst: Refusal | None = None
        for budget in ask.budgets:
            account = self._accounts[budget.account]
            free = budget.limit_nano - account.spent - account.held
            # Nothing may be left even for a request that costs nothing: an empty account is closed.
            if free < nano or budget.limit_nano <= account.spent:
                retry_us = account.wait_us(nano, budget.limit_nano, self._wall_us)
                worst = _longer(worst, Refusal("budget", budget.account, budget.limit_nano, max(free, 0), retry_us))
        for gate in ask.gates:
            place = self._places.get(gate.key)
            if (0 if place is None else place.running) >= gate.limit:
                retry = BUSY_RETRY_US if gate.limit else None
                worst = _longer(worst, Refusal("concurrency", gate.key, gate.limit, 0, retry))
        for rate, window in windows:
            amount = 1 if rate.unit == "requests" else tokens
            excess = window.total + amount - rate.limit
            if excess > 0:
                retry = None if amount > rate.limit else window.wait_us(excess, self._time_us(rate))
                left = max(rate.limit - window.total, 0)
                worst = _longer(worst, Refusal(rate.unit, rate.key, rate.limit, left, retry))
        if worst is None:
            return None
        requests_room, tokens_room = self._rooms(windows)
        return replace(worst, requests_room=requests_room, tokens_room=tokens_room)

    def _time_us(self, rate: Rate) -> int:
        """Now, on the clock that the rate follows."""
        return self._now_us if rate.ends_us is None else self._wall_us

    def _rooms(self, windows: Windows) -> tuple[Room | None, Room | None]:
        """The tightest request rate and the tightest token rate."""
        requests: Room | None = None
        tokens: Room | None = None
        for rate, window in windows:
            room = window.room(rate.limit, self._now_us, self._wall_us)
            if rate.unit == "tokens":
                if tokens is None or room.remaining < tokens.remaining:
                    tokens = room
            elif requests is None or room.remaining < requests.remaining:
                requests = room
        return requests, tokens

    def _hold(self, ask: Ask, bound: Bound, output_tokens: int, tokens: int, nano: int) -> Grant:
        now_us = self._now_us
        bound.occupy(nano, now_us)
        requests_room = tokens_room = None
        for window, limit in bound.requests:
            window.total += 1
            window.amounts[window.last] += 1
            if requests_room is None or limit - window.total < requests_room.remaining:
                requests_room = window.room(limit, now_us, ask.wall_us)
        for window, limit in bound.tokens:
            window.held = (window.held if window.held < window.total else window.total) + tokens
            window.total += tokens
            window.amounts[window.last] += tokens
            if tokens_room is None or limit - window.total < tokens_room.remaining:
                tokens_room = window.room(limit, now_us, ask.wall_us)
        # By position, which is quicker than by name, and as in the definition.
        grant = Grant(
            ask.id,
            ask.expires_us,
            output_tokens,
            tokens,
            nano,
            bound.slots,
            bound.gate_keys,
            bound.names,
            bound.places,
            bound.durable_accounts,
            requests_room,
            tokens_room,
        )
        self._keep(grant, bound)
        return grant

    def _keep(self, grant: Grant, bound: Bound) -> None:
        self._holds[grant.id] = grant, bound
        if grant.expires_us < self._expires_us:
            self._expires_us = grant.expires_us

    def settle(self, identity: str, tokens: int, nano: int) -> tuple[Charged, ...]:
        """End a hold with what was really used, zero for a request that came to nothing. Raises NotHeld."""
        held = self._holds.pop(identity, None)
        if held is None:
            raise NotHeld(identity)
        grant, bound = held
        if nano > grant.nano:
            nano = grant.nano
        surplus = grant.tokens - tokens if tokens < grant.tokens else 0
        for number, (_, slot) in enumerate(grant.slots):
            bound.tokens[number][0].give_back(slot, grant.tokens, surplus)
        for place, _ in bound.gates:
            place.running -= 1
        charged = []
        for number, (account, _) in enumerate(bound.accounts):
            account.charge(grant.nano, nano, grant.places[number])
            charged.append(Charged(grant.accounts[number], nano, account.spent))
        return tuple(charged)

    def expire(self, now_us: int) -> list[Grant]:
        """End the holds whose time is over, uncharged; what they held."""
        if now_us < self._expires_us:
            return []
        expired = [grant for grant, _ in self._holds.values() if grant.expires_us <= now_us]
        for grant in expired:
            self.settle(grant.id, grant.tokens, 0)
        self._expires_us = min((grant.expires_us for grant, _ in self._holds.values()), default=NEVER_US)
        return sorted(expired, key=lambda grant: grant.expires_us)

    def restore(self, grant: Grant) -> None:
        """Hold again the place and the money of a request that ran when the counters were lost. Its accounts have to
        be loaded."""
        if grant.id in self._holds:
            return
        gates, budgets = tuple(Gate(key, 0) for key in grant.gates), tuple(Budget(name, 0) for name in grant.accounts)
        bound = self._bind(Ask(grant.id, self._now_us, grant.expires_us, self._wall_us, (), gates, budgets))
        assert bound is not None, "its accounts are loaded"
        bound.occupy(grant.nano, self._now_us)
        for (account, _), slot in zip(bound.accounts, grant.places, strict=True):
            if account.window is not None and slot is not None:
                account.window.fill({slot: 0})
        self._keep(replace(grant, slots=()), bound)

    def forget(self, now_us: int, idle_us: int | None = None) -> None:
        """Drop windows that are empty and, when given, accounts that were not used for `idle_us`.

        An account may only be dropped while its durable sum is complete, from which it will be loaded again.
        """
        self._now_us = max(self._now_us, now_us)
        for key, window in list(self._windows.items()):
            window.advance(self._now_us)
            over = window.ends_us is not None and window.ends_us + KEPT_US <= self._wall_us
            if (over or not window.amounts) and not window.held:
                del self._windows[key]
        for key, place in list(self._places.items()):
            if not place.running:
                del self._places[key]
        self._bound.clear()
        if idle_us is not None:
            idle = [name for name, one in self._accounts.items() if one.used_us + idle_us <= self._now_us]
            for name in idle:
                if not self._accounts[name].holders:
                    del self._accounts[name]

    def saved(self) -> list[SavedWindow]:
        """What is counted in the windows of rates. Nothing is held any more."""
        return [
            SavedWindow(key, window.slot_us, window.ends_us, window.last, window.amounts)
            for key, window in self._windows.items()
            if window.total
        ]

    def recall(self, windows: Iterable[SavedWindow]) -> None:
        """Count on from there, on the same clock; before anything was admitted."""
        self._bound.clear()
        for one in windows:
            window = self._windows[one.key] = Window(one.slot_us * SLOTS, one.ends_us)
            window.last = one.last
            window.fill(one.amounts)

    @property
    def holds(self) -> int:
        """How many requests hold something."""
        return len(self._holds)

    def standing(self, account: str) -> tuple[int, int]:
        """(spent, held) of a loaded account."""
        found = self._accounts[account]
        return found.spent, found.held


def _longer(worst: Refusal | None, new: Refusal) -> Refusal:
    """The refusal that lasts longer; the first of two that last equally long."""
    if worst is None or (worst.retry_us is not None and (new.retry_us is None or new.retry_us > worst.retry_us)):
        return new
    return worst
