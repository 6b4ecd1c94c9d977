"""Which local models are in memory: decided here, acted on by the pool.

The pool shows what there is as `Seat`s, asks for a `Plan`, carries it out, and asks again at every change.

1. A model that is `leaving`, or was idle longer than its time to live, goes as soon as nothing runs on it.
2. More memory is taken than there is, because models grew: idle ones go, the least valuable first.
3. Those that somebody waits for have their turns: higher priority first, then whoever has waited longest.
   3.1 It is larger than what the pinned ones leave: impossible, and whoever waits is told.
   3.2 It fits beside all there is and what was claimed before it: it is loaded, unless too many are loading.
   3.3 Idle models that have been there long enough make room: the least valuable that suffice go.
   3.4 Otherwise models that are busy, or came only lately, have to make room. Those that have been there long enough
       are held: they take no more requests, so that they become idle.
   Whichever it is, its size is claimed, and nobody behind it gets that memory.
4. Those that are to be there before anybody asks are loaded where they fit and nothing has to go.

Being there long enough pays for the load: all requests that came meanwhile are served together, and two models that
want the same memory change places seldom instead of with every request. So nothing is ever evicted while it is busy,
what is taken and being loaded never exceeds the memory as long as sizes are right, and the one that has waited longest
always makes headway. The value of an idle model is its priority, then how many requests it had of late, and then how
recently it was used, for what loading it costs. Against the latter alone, requests of late save some percent of the
loads where models are asked unevenly. Times are seconds on any one clock.

How far loads are from the fewest possible depends on how many ask. Where many do, requests that wait for a model are
served together, and there are fewer loads than the best order without waiting has (Belady, 1966). Where few do, nobody
waits, and who does not know the future cannot come near: of random requests to three models with memory for two, a
third needs a load, while a bit more than a fifth would do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec

# How long a worker takes to write its conversations down and end.
LEAVE_S = 0.5
LOAD_S_MIN = 0.05

Place = Literal["out", "coming", "in", "going"]


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """`residency_s_min` None: `RESIDENCY_FACTOR` times as long as loading took, but no longer than a minute."""

    memory_bytes: int
    loads_max: int = 2
    residency_s_min: float | None = None


# After so long a request counts half as much.
USE_HALF_S = 60.0
RESIDENCY_FACTOR = 5.0
RESIDENCY_S_MAX = 60.0


class Seat(msgspec.Struct, frozen=True, kw_only=True):
    """A model as the planner sees it.

    `wanted_s` is since when somebody waits for it, `since_s` since when it is there, `used_s` when it was last busy.
    `uses` are the requests of late, each counting half as much after every `USE_HALF_S`.
    `load_s` is how long loading takes, `left_s` how long it will still be loading or busy.
    """

    name: str
    size_bytes: int
    place: Place = "out"
    wanted_s: float | None = None
    eager: bool = False
    busy: bool = False
    held: bool = False
    leaving: bool = False
    pinned: bool = False
    priority: int = 0
    since_s: float = 0.0
    used_s: float = 0.0
    uses: float = 0.0
    load_s: float = 1.0
    left_s: float = 0.0
    ttl_s: float | None = None


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done now. `hold` are all that take no requests until the next plan, `impossible` those that can
    never be loaded, `begins_s` after how many seconds the loads of those wanted are expected to begin."""

    load: tuple[str, ...] = ()
    evict: tuple[str, ...] = ()
    hold: tuple[str, ...] = ()
    impossible: tuple[str, ...] = ()
    begins_s: Mapping[str, float] = {}


def plan(seats: Sequence[Seat], rules: Rules, now_s: float) -> Plan:
    """Pure: the same seats give the same plan."""
    return _Planning(seats, rules, now_s).plan()


class _Planning:
    """`free_bytes` is free now, `later_bytes` when all that go have gone and all claims are met."""

    def __init__(self, seats: Sequence[Seat], rules: Rules, now_s: float) -> None:
        self._seats = seats
        self._rules = rules
        self._now_s = now_s
        self._inside = {seat.name: seat for seat in seats if seat.place == "in"}
        self._loading = [seat for seat in seats if seat.place == "coming"]
        staying = _size(self._loading) + _size(self._inside.values())
        self._later_bytes = rules.memory_bytes - staying
        self._free_bytes = self._later_bytes - _size(seat for seat in seats if seat.place == "going")
        self._load: list[str] = []
        self._evict: list[str] = []
        self._hold: list[str] = []
        self._impossible: list[str] = []
        self._begins_s: dict[str, float] = {}

    def plan(self) -> Plan:
        for seat in list(self._inside.values()):
            if not seat.busy and (seat.leaving or self._expired(seat)):
                self._let_go(seat)
        if self._later_bytes < 0:
            for seat in self._enough(self._idle(), 0):
                self._let_go(seat)
        out = [seat for seat in self._seats if seat.place == "out"]
        wanted = [(seat.wanted_s, seat) for seat in out if seat.wanted_s is not None]
        ahead_s = 0.0
        for _, seat in sorted(wanted, key=lambda one: (-one[1].priority, one[0])):
            ahead_s = self._seat(seat, ahead_s)
        for seat in sorted(out, key=lambda seat: -seat.priority):
            if seat.eager and seat.wanted_s is None:
                self._load_if_it_fits(seat)
        return Plan(
            load=tuple(self._load),
            evict=tuple(self._evict),
            hold=tuple(self._hold),
            impossible=tuple(self._impossible),
            begins_s=self._begins_s,
        )

    def _seat(self, seat: Seat, ahead_s: float) -> float:
        """Find memory for a wanted model; how long those behind it have to wait at least."""
        pinned = _size(other for other in self._seats if other.pinned and other.place in ("in", "coming"))
        if seat.size_bytes > self._rules.memory_bytes - pinned:
            self._impossible.append(seat.name)
            return ahead_s
        if self._load_if_it_fits(seat):
            self._begins_s[seat.name] = 0.0
            return ahead_s
        begins_s = max(ahead_s, self._slot_free_s())
        lacking = seat.size_bytes - self._later_bytes
        if lacking > 0:
            begins_s = max(begins_s, self._make_room(seat))
        elif self._free_bytes < seat.size_bytes:
            begins_s = max(begins_s, LEAVE_S)
        self._later_bytes -= seat.size_bytes
        self._begins_s[seat.name] = begins_s
        return begins_s + seat.load_s

    def _load_if_it_fits(self, seat: Seat) -> bool:
        room = min(self._free_bytes, self._later_bytes)
        if seat.size_bytes > room or len(self._loading) + len(self._load) >= self._rules.loads_max:
            return False
        self._load.append(seat.name)
        self._free_bytes -= seat.size_bytes
        self._later_bytes -= seat.size_bytes
        return True

    def _make_room(self, wanted: Seat) -> float:
        """Let idle ones go, or else hold busy ones, until `wanted` fits later; the seconds that will take."""
        ripe = [seat for seat in self._idle() if self._unripe_s(seat) <= 0]
        victims = self._enough(ripe, wanted.size_bytes)
        if self._later_bytes + _size(victims) >= wanted.size_bytes:
            for seat in victims:
                self._let_go(seat)
            return LEAVE_S
        # Those held already come first, so that the choice does not change while they become idle.
        others = [seat for seat in self._inside.values() if not seat.pinned and seat.name not in self._hold]
        others.sort(key=lambda seat: (not seat.held, seat.busy, self._unripe_s(seat) > 0, *self._value(seat)))
        wait_s = 0.0
        for seat in self._enough(others, wanted.size_bytes):
            wait_s = max(wait_s, self._unripe_s(seat), seat.left_s if seat.busy else 0.0)
            self._later_bytes += seat.size_bytes
            del self._inside[seat.name]
            if self._unripe_s(seat) <= 0:
                self._hold.append(seat.name)
        return wait_s + LEAVE_S

    def _enough(self, candidates: Iterable[Seat], needed_bytes: int) -> list[Seat]:
        """The first of the candidates whose memory is enough, without those that turn out not to be needed."""
        chosen: list[Seat] = []
        lacking = needed_bytes - self._later_bytes
        for seat in candidates:
            if lacking <= 0:
                break
            chosen.append(seat)
            lacking -= seat.size_bytes
        for seat in reversed(list(chosen)):
            if lacking + seat.size_bytes <= 0:
                chosen.remove(seat)
                lacking += seat.size_bytes
        return chosen

    def _let_go(self, seat: Seat) -> None:
        self._evict.append(seat.name)
        self._later_bytes += seat.size_bytes
        del self._inside[seat.name]

    def _idle(self) -> list[Seat]:
        """What could go now, the least valuable first."""
        return sorted((seat for seat in self._inside.values() if not seat.busy and not seat.pinned), key=self._value)

    def _value(self, seat: Seat) -> tuple[int, float, float]:
        idle_s = 0.0 if seat.busy else max(self._now_s - seat.used_s, 0.0)
        load_s = max(seat.load_s, LOAD_S_MIN)
        return seat.priority, seat.uses * load_s, -idle_s / load_s

    def _unripe_s(self, seat: Seat) -> float:
        """How much longer it has to be there to pay for its load."""
        least_s = self._rules.residency_s_min
        if least_s is None:
            least_s = min(RESIDENCY_FACTOR * seat.load_s, RESIDENCY_S_MAX)
        return seat.since_s + least_s - self._now_s

    def _expired(self, seat: Seat) -> bool:
        idle_s = self._now_s - seat.used_s
        return seat.ttl_s is not None and not seat.pinned and seat.wanted_s is None and idle_s >= seat.ttl_s

    def _slot_free_s(self) -> float:
        """When another load may begin."""
        if len(self._loading) + len(self._load) < self._rules.loads_max:
            return 0.0
        return min((seat.left_s for seat in self._loading), default=0.0)


def _size(seats: Iterable[Seat]) -> int:
    return sum(seat.size_bytes for seat in seats)
