"""What one replica may let in by itself while the counters that all share are away: its part of every limit.

It remembers what it let in before, so that an outage does not begin with empty windows: when all have had their part,
all of them together go on at the limit. When the counters are back, each tells them what they missed: what was let in
without them, or, when they have lost everything, all that is still in its windows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import msgspec
from msgspec.structs import replace

from gateway.limits.book import Ask, Book, Grant, Missing, NotHeld, Refusal

# Slots of windows in which tokens were counted: (window, slot).
Slots = tuple[tuple[str, int], ...]


class Counted(msgspec.Struct, frozen=True):
    """What is in a window, by how many slots ago it was counted; `periodic`: it is a calendar period of one slot."""

    key: str
    slot_us: int
    periodic: bool
    amounts: tuple[tuple[int, int], ...]


class Share:
    """The part of one of `replicas`."""

    def __init__(self, replicas: int) -> None:
        self._replicas = replicas
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
        if isinstance(decision, Grant):
            self._running[ask.id] = decision, self._untold.count(ask, decision.tokens)
        return decision

    def refuse(self, ask: Ask) -> Refusal | None:
        """The rate of which this replica has had its part."""
        return self._all.refusal(self._part(replace(ask, gates=(), budgets=())))

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
        return self._all.count(ask, tokens)

    def uncount(self, slots: Slots, surplus: int) -> None:
        """It used less."""
        self._all.uncount(slots, surplus)

    def take(self, now_us: int, *, everything: bool) -> list[Counted]:
        """What the shared counters have to be told: what they missed, or everything. It counts as told from now on."""
        book = self._all if everything else self._untold
        told = [one for one in counted(book, now_us) if one.amounts]
        self._untold = Book()
        self._running = {identity: (grant, ()) for identity, (grant, _) in self._running.items()}
        return told

    def forget(self, now_us: int) -> None:
        """Drop windows that are empty."""
        self._all.forget(now_us)
        self._untold.forget(now_us)

    def _part(self, ask: Ask) -> Ask:
        rates = tuple(replace(rate, limit=self._part_of(rate.limit)) for rate in ask.rates)
        gates = tuple(replace(gate, limit=self._part_of(gate.limit)) for gate in ask.gates)
        return replace(ask, rates=rates, gates=gates)

    def _part_of(self, limit: int) -> int:
        return min(limit, max(limit // self._replicas, 1))


def counted(book: Book, now_us: int) -> Iterable[Counted]:
    """What is in the windows of a book."""
    for key, window in book.windows(now_us):
        ages = ((window.last - slot, amount) for slot, amount in window.amounts.items() if amount > 0)
        yield Counted(key, window.slot_us, window.ends_us is not None, tuple(ages))
