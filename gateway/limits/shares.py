"""What one replica may let in by itself while the counters that all share are away: its part of every limit.

It remembers what it let in before, and what the others said they did, so that an outage does not begin with empty
windows: each has its part of what was left when it began, and never more than its part of the limit, which holds where
the others were not heard. When the counters are back, each tells them what they missed: what was let in
without them, or, when they have lost everything, all that is still in its windows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import msgspec
from msgspec.structs import replace

from gateway.limits.book import Ask, Book, Grant, Missing, NotHeld, Rate, Refusal
from gateway.limits.hearsay import Hearsay
from gateway.limits.hearsay import Slots as Said
from gateway.limits.windows import BUSY_RETRY_US

# Slots of windows in which tokens were counted: (window, slot).
Slots = tuple[tuple[str, int], ...]


class Counted(msgspec.Struct, frozen=True):
    """What is in a window, by how many slots ago it was counted; `periodic`: it is a calendar period of one slot."""

    key: str
    slot_us: int
    periodic: bool
    amounts: tuple[tuple[int, int], ...]


class Share:
    """The part of one of `replicas`, which hears from the others."""

    def __init__(self, replicas: int, hearsay: Hearsay) -> None:
        self._replicas = replicas
        self._hearsay = hearsay
        self._changed: dict[str, set[int]] = {}
        self._all = Book()
        self._untold = Book()
        self._running: dict[str, tuple[Grant, Slots]] = {}

    @property
    def holds(self) -> int:
        return len(self._running)

    def admit(self, ask: Ask) -> Grant | Refusal:
        """Let a request in without asking anybody; it has no budgets."""
        self._all.expire(ask.now_us)
        decision = self._all.admit(self._part(ask))
        assert not isinstance(decision, Missing), "there are no accounts"
        if isinstance(decision, Refusal):
            return _again(decision, ask)
        self._running[ask.id] = decision, self._untold.count(ask, decision.tokens)
        return decision

    def refuse(self, ask: Ask) -> Refusal | None:
        """The rate of which this replica has had its part."""
        refusal = self._all.refusal(self._part(replace(ask, gates=(), budgets=())))
        return refusal and _again(refusal, ask)

    def settle(self, identity: str, tokens: int) -> bool:
        """End what was let in here; False when it was not."""
        known = self._running.pop(identity, None)
        if known is None:
            return False
        grant, slots = known
        with contextlib.suppress(NotHeld):  # Its place was given up already, as it ran for long.
            self._all.settle(identity, tokens, 0)
        self._untold.uncount(slots, grant.tokens - min(tokens, grant.tokens))
        return True

    def count(self, ask: Ask, tokens: int) -> Slots:
        """Remember what the shared counters let in."""
        slots = self._all.count(ask, tokens)
        for rate in ask.rates:
            if (window := self._all.window(rate.key)) is not None:
                self._changed.setdefault(rate.key, set()).add(window.last)
        return slots

    def uncount(self, slots: Slots, surplus: int) -> None:
        """It used less."""
        self._all.uncount(slots, surplus)
        for key, slot in slots:
            self._changed.setdefault(key, set()).add(slot)

    def changed(self) -> list[Said]:
        """What is to be said to the others: what is now in the slots that have changed since the last time."""
        said = []
        for key, slots in self._changed.items():
            window = self._all.window(key)
            if window is not None:
                amounts = tuple((slot, window.amounts[slot]) for slot in sorted(slots) if slot in window.amounts)
                said.append(Said(key, window.slot_us, window.ends_us, amounts))
        self._changed = {}
        return said

    def take(self, now_us: int, *, everything: bool) -> list[Counted]:
        """What the shared counters have to be told: what they missed, or everything. It counts as told from now on."""
        book = self._all if everything else self._untold
        told = [one for one in counted(book, now_us) if one.amounts]
        for key, window in self._untold.windows(now_us):
            self._changed.setdefault(key, set()).update(window.amounts)
        self._untold = Book()
        self._running = {identity: (grant, ()) for identity, (grant, _) in self._running.items()}
        return told

    def forget(self, now_us: int) -> None:
        """Drop windows that are empty."""
        self._all.forget(now_us)
        self._untold.forget(now_us)

    def _part(self, ask: Ask) -> Ask:
        rates = tuple(replace(rate, limit=self._part_of_rate(rate, ask.now_us)) for rate in ask.rates)
        gates = tuple(replace(gate, limit=self._part_of(gate.limit)) for gate in ask.gates)
        return replace(ask, rates=rates, gates=gates)

    def _part_of_rate(self, rate: Rate, now_us: int) -> int:
        """Of what was left when the counters went away this replica may let in its part, and in all no more than its
        part of the limit."""
        own, untold = self._all.window(rate.key), self._untold.window(rate.key)
        told = 0
        if own is not None:
            own.advance(now_us)
            told = own.total
        if untold is not None:
            untold.advance(now_us)
            told -= untold.total
        left = max(rate.limit - told - self._hearsay.used(rate.key, now_us), 0)
        # Of a limit below the number of replicas each may let in one.
        part = left // self._replicas if rate.limit >= self._replicas else min(left, 1)
        return min(self._part_of(rate.limit), told + part)

    def _part_of(self, limit: int) -> int:
        return min(limit, max(limit // self._replicas, 1))


def _again(refusal: Refusal, ask: Ask) -> Refusal:
    """What is too much for a part may come again, unless it is too much for the limit."""
    limits = {rate.key: rate.limit for rate in ask.rates}
    if refusal.retry_us is not None or not limits.get(refusal.key):
        return refusal
    amount = 1 if refusal.kind == "requests" else ask.input_tokens + (ask.output_tokens_min or 0) * ask.choices
    return replace(refusal, retry_us=BUSY_RETRY_US) if amount <= limits[refusal.key] else refusal


def counted(book: Book, now_us: int) -> Iterable[Counted]:
    """What is in the windows of a book."""
    for key, window in book.windows(now_us):
        ages = ((window.last - slot, amount) for slot, amount in window.amounts.items() if amount > 0)
        yield Counted(key, window.slot_us, window.ends_us is not None, tuple(ages))
