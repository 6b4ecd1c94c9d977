"""Who is served next on one model: a bounded queue that is fair across tenants by the tokens they were served.

The order is the virtual token counter of Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024):

1. A tenant's counter grows by (input tokens x 1 + output tokens x 2) / weight; input when it is dispatched, output as
   it is served. The tenant with the lowest counter goes next; inside a tenant priority decides, then arrival.
2. A tenant that was idle is lifted to the lowest counter of the active ones, so that idleness earns no credit.
3. When nothing waits or runs, all counters are forgotten, and so are promises: a new busy period owes nothing to the
   last one, and whoever comes back finds a place.

The queue decides and never acts: it has no clock, no I/O and no callbacks. Times are seconds on any one clock.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import math
from typing import Protocol

import msgspec

from adapters.errors import AdapterError, Overloaded, QueueFull

INPUT_COST = 1.0
OUTPUT_COST = 2.0
OUTPUT_TOKENS_GUESS = 256.0
SMOOTHING = 0.2
WEIGHT_MIN = 1e-3
SIMULATED_PLACES_MAX = 256
PROMISES_MAX = 10_000
TENANTS_MAX = 4096


class Owner(Protocol):
    """Who hears what became of an entry. Called by the one who acts on the queue's decisions, not by the queue."""

    def granted(self, entry: Entry) -> None: ...

    def evicted(self, entry: Entry, error: AdapterError) -> None: ...


class _Nobody:
    def granted(self, entry: Entry) -> None: ...

    def evicted(self, entry: Entry, error: AdapterError) -> None: ...


_NOBODY = _Nobody()


class Rates(msgspec.Struct, frozen=True):
    """How fast the engine is when all places are taken.

    Prompts are computed one token after the other at `prefill_us_per_token`, whoever they belong to; every running
    stream gains one token in each `decode_us_per_token`.
    """

    prefill_us_per_token: float = 1000.0
    decode_us_per_token: float = 50_000.0


class Entry(msgspec.Struct, eq=False, kw_only=True):
    """One request in the queue. `max_tokens` bounds each of its `choices`; when it is `endless` nothing else does.

    A `committed` entry belongs to a request that has already begun to answer; it is never evicted. Whoever runs an
    entry counts in `produced` the output tokens that it gets. All other fields after `committed` are the queue's.
    """

    tenant: str
    owner: Owner
    prompt_tokens: int
    max_tokens: int
    endless: bool = False
    choices: int = 1
    weight: float = 1.0
    priority: int = 0
    committed: bool = False
    number: int = -1
    slots: int = 0
    running: bool = False
    joined_s: float = 0.0
    started_s: float = 0.0
    prefill_mark_s: float = 0.0
    produced: int = 0
    charged: int = 0


class _Tenant(msgspec.Struct, eq=False):
    """What one tenant has waiting (best first) and running, its virtual token counter, and the times that its refused
    callers were promised (soonest first)."""

    counter: float = 0.0
    weight: float = 1.0
    waiting: list[Entry] = []
    running: int = 0
    promises_s: list[float] = []

    def active(self) -> bool:
        return bool(self.waiting or self.running)


def _rank(entry: Entry) -> tuple[int, int]:
    return -entry.priority, entry.number


class FairQueue:
    """The waiting and running entries of one model: at most `depth_max` wait, at most `parallel` slots are taken."""

    def __init__(self, parallel: int, depth_max: int) -> None:
        assert parallel >= 1 and depth_max >= 1
        self.parallel = parallel
        self.depth_max = depth_max
        self.rates = Rates()
        self.slots_taken = 0
        self.waiting = 0
        self.rejected = 0
        self._tenants: dict[str, _Tenant] = {}
        self._running: dict[int, Entry] = {}
        self._head: Entry | None = None
        self._numbers = itertools.count()
        self._output_tokens: float | None = None
        self._gap_s = 0.0
        self._prefill_total_s = 0.0
        self._computed_share = 1.0
        self._promises_s: list[float] = []  # Those of no tenant in particular.

    @property
    def running(self) -> int:
        return len(self._running)

    def in_line(self) -> list[Entry]:
        """Those that wait, in the order of their arrival."""
        waiting = itertools.chain.from_iterable(tenant.waiting for tenant in self._tenants.values())
        return sorted(waiting, key=lambda entry: entry.number)

    # Entering and being refused.

    def join(self, entry: Entry, now_s: float) -> tuple[Entry, AdapterError] | None:
        """Put `entry` in line; the entry that lost its place to it and why, if one did.

        1. A place is free: take it.
        2. The tenant already has its fair share (depth / tenants waiting, this one included): QueueFull.
        3. Some tenant is over its share, even after losing an entry to the newcomer's tenant: its last waiting entry
           goes, the newcomer takes the place.
        4. Nobody is: Overloaded.
        """
        assert entry.number < 0, "an entry joins once"
        entry.slots = min(entry.choices, self.parallel)
        victim = None
        if self.waiting >= self.depth_max:
            victim = self._victim(entry, now_s)
            self._take_out(victim)
        entry.number = next(self._numbers)
        entry.joined_s = now_s
        tenant = self._enter(entry)
        bisect.insort(tenant.waiting, entry, key=_rank)
        self.waiting += 1
        if victim is None:
            return None
        return victim, self._refusal(QueueFull, "the place was given to a tenant with fewer requests", victim, now_s)

    def _victim(self, entry: Entry, now_s: float) -> Entry:
        mine = self._tenants.get(entry.tenant)
        held = len(mine.waiting) if mine else 0
        crowded = [tenant for tenant in self._tenants.values() if tenant.waiting]
        share = self.depth_max / (len(crowded) + (held == 0))
        if held >= share:
            raise self._refusal(QueueFull, "this tenant's share of the queue is used up", entry, now_s)
        for tenant in sorted(crowded, key=lambda tenant: -len(tenant.waiting)):
            if len(tenant.waiting) <= share or len(tenant.waiting) < held + 2:
                break
            for last in reversed(tenant.waiting):
                if not last.committed:
                    return last
        raise self._refusal(Overloaded, "the queue is full", entry, now_s)

    def _refusal(self, kind: type[QueueFull | Overloaded], reason: str, entry: Entry, now_s: float) -> AdapterError:
        self.rejected += 1
        promises_s = self._tenants[entry.tenant].promises_s if kind is QueueFull else self._promises_s
        wait_s = self._promise(promises_s, entry, now_s)
        return kind(f"Too many requests are waiting: {reason}.", retry_after_s=wait_s)

    def _enter(self, entry: Entry) -> _Tenant:
        tenant = self._tenants.get(entry.tenant)
        if tenant is None:
            if len(self._tenants) >= TENANTS_MAX:
                self._tenants = {name: other for name, other in self._tenants.items() if other.active()}
            tenant = self._tenants[entry.tenant] = _Tenant()
        self._charge_all()
        if not tenant.active():
            active = [other.counter for other in self._tenants.values() if other.active()]
            tenant.counter = max(tenant.counter, min(active, default=0.0))
        tenant.weight = max(entry.weight, WEIGHT_MIN)
        return tenant

    # Being served and leaving.

    def dispatch(self, now_s: float) -> list[Entry]:
        """Take the entries that run from now on out of the line, in order.

        The first in line for a free slot keeps its turn until enough slots are free: nobody overtakes it any more.
        """
        granted = []
        if self.waiting:
            self._charge_all()
        while self.waiting and self.slots_taken < self.parallel:
            if self._head is None:
                best = min(
                    (tenant for tenant in self._tenants.values() if tenant.waiting),
                    key=lambda tenant: (tenant.counter, tenant.waiting[0].number),
                )
                self._head = best.waiting[0]
            entry = self._head
            entry.slots = min(entry.choices, self.parallel)
            if self.slots_taken + entry.slots > self.parallel:
                break
            self._take_out(entry)
            tenant = self._tenants[entry.tenant]
            tenant.running += 1
            tenant.counter += INPUT_COST * entry.prompt_tokens / tenant.weight
            entry.running = True
            entry.started_s = now_s
            entry.prefill_mark_s = self._prefill_total_s
            self._prefill_total_s += self._prefill_s(entry)
            self._running[entry.number] = entry
            self.slots_taken += entry.slots
            granted.append(entry)
        return granted

    def _charge(self, entry: Entry) -> None:
        """Bring a tenant's counter up to what was produced for a running entry. That is not done for each token, but
        before counters are compared, before their weight changes, and before the entry goes."""
        tenant = self._tenants[entry.tenant]
        tenant.counter += OUTPUT_COST * (entry.produced - entry.charged) / tenant.weight
        entry.charged = entry.produced

    def _charge_all(self) -> None:
        for entry in self._running.values():
            self._charge(entry)

    def prefilled(self, entry: Entry, cached_tokens: int) -> None:
        """The prompt of a running entry is done; `cached_tokens` of it did not have to be computed."""
        if entry.prompt_tokens > 0:
            share = 1.0 - min(cached_tokens, entry.prompt_tokens) / entry.prompt_tokens
            self._computed_share += SMOOTHING * (share - self._computed_share)

    def shrink(self, entry: Entry, choices: int) -> None:
        """Only `choices` of a running entry are still unfinished; slots it no longer needs come free."""
        slots = min(choices, entry.slots)
        self.slots_taken -= entry.slots - slots
        entry.slots = slots

    def finished(self, entry: Entry, now_s: float) -> None:
        """A running entry came to its own end, which teaches how long outputs are and how fast they come. One that was
        cut by its bound would have been longer: it teaches nothing where longer ones are expected."""
        per_choice = entry.produced / entry.choices
        expected = self._expected_tokens(entry)
        if per_choice < entry.max_tokens or per_choice > expected:
            known = per_choice if self._output_tokens is None else self._output_tokens
            self._output_tokens = known + SMOOTHING * (per_choice - known)
        if per_choice and entry.choices <= self.parallel:
            decoded_s = now_s - entry.started_s - (self._prefill_total_s - entry.prefill_mark_s)
            gap_s = max(decoded_s, 0.0) / per_choice
            self._gap_s += SMOOTHING * (gap_s - self._gap_s) if self._gap_s else gap_s
        self.leave(entry)

    def leave(self, entry: Entry) -> None:
        """Remove a waiting or running entry at once; an entry that is neither is left alone."""
        if entry.running:
            self._charge(entry)
            entry.running = False
            del self._running[entry.number]
            self.slots_taken -= entry.slots
            self._tenants[entry.tenant].running -= 1
        elif self._waits(entry):
            self._take_out(entry)
        if not self.waiting and not self._running:
            self._tenants.clear()
            self._promises_s.clear()

    def _waits(self, entry: Entry) -> bool:
        tenant = self._tenants.get(entry.tenant)
        return tenant is not None and any(other is entry for other in tenant.waiting)

    def _take_out(self, entry: Entry) -> None:
        waiting = self._tenants[entry.tenant].waiting
        del waiting[bisect.bisect_left(waiting, _rank(entry), key=_rank)]
        self.waiting -= 1
        if self._head is entry:
            self._head = None

    # When a place will be free.

    def eta_s(self, now_s: float) -> float:
        """Seconds until a request that came now would be dispatched, behind all that wait."""
        if self.slots_taken < self.parallel and not self.waiting:
            return 0.0
        caller = Entry(tenant="", owner=_NOBODY, prompt_tokens=0, max_tokens=1)
        place = self.waiting + 1
        simulated = min(place, SIMULATED_PLACES_MAX)
        return self._place_free_s(simulated, caller, now_s) * place / simulated

    def done_s(self, now_s: float) -> float:
        """Seconds until all that run now are expected to be done."""
        decode_s = max(map(self._decode_left_s, self._running.values()), default=0.0)
        return self._running_prefill_s(now_s) + decode_s

    def _promise(self, promises: list[float], entry: Entry, now_s: float) -> float:
        """Seconds after which the place of this refused caller is expected to be free.

        Callers refused before who hold one of the `promises`, a time still to come, are ahead of this one, so that a
        herd is spread over the places as they come free instead of coming back at once. A tenant over its share has
        its own herd only: another one's does not come back into its places.
        """
        while promises and promises[0] <= now_s:
            heapq.heappop(promises)
        place = len(promises) + 1
        simulated = min(place, SIMULATED_PLACES_MAX)
        wait_s = self._place_free_s(simulated, entry, now_s) * place / simulated
        if len(promises) < PROMISES_MAX:
            heapq.heappush(promises, now_s + wait_s)
        return wait_s

    def _place_free_s(self, place: int, caller: Entry, now_s: float) -> float:
        """Seconds until `place` waiting entries have been dispatched, if callers like `caller` follow those waiting.

        The engine is taken to compute prompts first and to decode otherwise. So a heap holds, in decode time, when each
        slot comes free, and the prompts dispatched until then are added to it.
        """
        prefill_s = self._running_prefill_s(now_s)
        free_s = [0.0] * (self.parallel - self.slots_taken)
        for entry in self._running.values():
            free_s.extend([self._decode_left_s(entry)] * entry.slots)
        heapq.heapify(free_s)
        for entry in itertools.chain(self.in_line(), itertools.repeat(caller)):
            slots = min(entry.choices, self.parallel)
            for _ in range(slots):
                start_s = heapq.heappop(free_s)
            place -= 1
            if place == 0:
                return start_s + prefill_s
            prefill_s += self._prefill_s(entry)
            end_s = start_s + self._decode_left_s(entry) * math.ceil(entry.choices / slots)
            for _ in range(slots):
                heapq.heappush(free_s, end_s)
        raise AssertionError("the line has no end")

    def _prefill_s(self, entry: Entry) -> float:
        return entry.prompt_tokens * self._computed_share * self.rates.prefill_us_per_token * 1e-6

    def _running_prefill_s(self, now_s: float) -> float:
        """What is left of the prompts in work; the engine has been at them since the first of them was dispatched."""
        in_prefill = [entry for entry in self._running.values() if not entry.produced]
        elapsed_s = now_s - min((entry.started_s for entry in in_prefill), default=now_s)
        return max(sum(map(self._prefill_s, in_prefill)) - elapsed_s, 0.0)

    def _decode_left_s(self, entry: Entry) -> float:
        """An entry that outlived the expectation is expected to go on for a quarter of what it produced.

        The pace is the slower of what the engine's steps take now and what finished entries saw: a step takes longer
        as contexts grow, so neither alone tells what is to come.
        """
        produced = entry.produced / entry.choices
        left = max(self._expected_tokens(entry) - produced, 1.0 + produced / 4)
        gap_s = max(self.rates.decode_us_per_token * 1e-6, self._gap_s)
        return min(left, max(entry.max_tokens - produced, 0.0)) * gap_s

    def _expected_tokens(self, entry: Entry) -> float:
        """How long each output of an entry would be without its bound."""
        if entry.endless:
            return entry.max_tokens
        return OUTPUT_TOKENS_GUESS if self._output_tokens is None else self._output_tokens
