"""One local model of a pool: in memory, on its way, or out; and the door that its requests come in by."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Protocol

import msgspec

from adapters.errors import AdapterError, ModelLoading, ModelUnavailable
from adapters.llama_cpp.arrivals import Arrivals
from adapters.llama_cpp.process import State
from adapters.llama_cpp.residency import LEAVE_S, RESIDENCY_FACTOR, USE_HALF_S, Place, Seat

# A model that was asked for is still wanted that long after it could have been there, though nobody waits any more:
# whoever was told to come back later will.
WANTED_S = 60.0
# What is taken for granted of a disk until a model was loaded from it.
LOAD_BYTES_PER_S = 400e6
LOAD_S_GUESS = 1.0
FETCH_RETRY_S = 5.0
FETCH_RETRY_S_MAX = 300.0


class Residence(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator decides about a model's place in memory.

    A `lazy` one is loaded when somebody asks for it. A `pinned` one stays. `priority`: higher is served first and
    evicted last. After `ttl_s` without a request it sleeps (None: never for that reason).
    """

    lazy: bool = False
    pinned: bool = False
    priority: int = 0
    ttl_s: float | None = None


class Need(msgspec.Struct, frozen=True):
    """The memory a model takes: all of it before it is loaded, and `later_bytes` of that only when it is used."""

    size_bytes: int = 0
    later_bytes: int = 0


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """A model's place in memory as operators see it.

    `memory_bytes` is what it takes or, while it is not `inside`, would take. `waiting` requests wait for it to be
    loaded. `used_s` is when it was last busy, by the monotonic clock that the processes of a machine share; None while
    it is not loaded. `held`: it lets nobody in, so that it can make room.
    """

    inside: bool
    memory_bytes: int
    waiting: int
    pinned: bool
    lazy: bool
    priority: int
    ttl_s: float | None
    held: bool
    loads: int
    load_s: float | None
    used_s: float | None


class FetchFailed(Exception):
    """The files of a model cannot be brought here now; the message is for operators."""


class Withdrawn(FetchFailed):
    """Somebody decided against it: there will be no other try by itself."""


class Source(Protocol):
    """Where the files of a model come from that are not here yet."""

    async def fetch(self) -> None:
        """Bring them here; raises FetchFailed."""
        ...

    def progress(self) -> tuple[float, float]:
        """Which part of them is here, and the seconds until all are."""
        ...


class Loadable(Protocol):
    """A model that can be brought into memory, as `LlamaCpp` is one."""

    name: str

    @property
    def busy(self) -> bool:
        """Whether there is any request in it."""
        ...

    @property
    def failed(self) -> bool:
        """Whether it failed too often to be tried again by itself."""
        ...

    def absence(self) -> AdapterError | None:
        """Why it cannot be asked now; None when it can."""
        ...

    def left_s(self) -> float:
        """Seconds until it will be loaded, or until it will be idle."""
        ...

    async def load(self) -> bool:
        """Bring it into memory, whatever failed before; False when it is not there in the end."""
        ...

    async def sleep(self) -> None:
        """Take it out of memory; nothing of it is left there when this returns."""
        ...


class Resident:
    """What the pool knows of a model, and what decides whether a request may come in.

    `begins_s` is when its load is expected to begin, as the last plan said.
    """

    def __init__(
        self,
        model: Loadable,
        how: Residence,
        depth_max: int,
        wait_s_max: float,
        clock: Callable[[], float],
        think: Callable[[], None],
    ) -> None:
        self.model = model
        self.how = how
        self.pinned = how.pinned
        self.eager = not how.lazy
        self.place: Place = "out"
        self.need: Need | None = None
        self.size_bytes = 0
        self.held = False
        self.unloaded = False
        self.leaving = False
        self.failed = False
        self.impossible: ModelUnavailable | None = None
        self.loads = 0
        self.begins_s = 0.0
        self.load_s: float | None = None
        self.since_s = self.used_s = 0.0
        self.arrivals = Arrivals(depth_max)
        self.trouble: str | None = None
        self.retry_s = 0.0
        self._fetches_failed = 0
        self.fetching: Source | None = None
        self._uses = self._counted_s = 0.0
        self._wanted_s: float | None = None
        self._asked_s = -math.inf
        self._wait_s_max = wait_s_max
        self._clock = clock
        self.think = think

    # The door

    @property
    def open(self) -> bool:
        """Whether requests may come in at once."""
        return self.place == "in" and not self.held and not self.leaving and self.model.absence() is None

    def enter_now(self) -> bool:
        """Whether a request may come in at once. Nothing may be awaited before it said its first word to the model."""
        if not self.open:
            return False
        self.used_s = self._clock()
        self._count_use()
        return True

    def _count_use(self) -> None:
        now_s = self._clock()
        self._uses, self._counted_s = self._uses_at(now_s) + 1.0, now_s

    def _uses_at(self, now_s: float) -> float:
        """The requests of late, as `Seat` has them."""
        return self._uses * math.exp2((self._counted_s - now_s) / USE_HALF_S)

    async def enter(self, tenant: str) -> None:
        """Wait until a request may come in, with the same promise as `enter_now`.

        Raises ModelLoading with the time after which the model is expected to be there, when that is longer than
        anybody waits or when too many wait; ModelUnavailable when it will not be there.
        """
        if self.enter_now():
            return
        self._check()
        self.want()
        if self.impossible is not None:
            raise self.impossible
        eta_s = self.eta_s()
        if eta_s > self._wait_s_max:
            raise ModelLoading(self._loading(), retry_after_s=eta_s)
        arrival = self.arrivals.join(tenant, eta_s)
        self._count_use()
        try:
            async with asyncio.timeout(self._wait_s_max):
                await arrival.come
        except TimeoutError:
            raise ModelLoading(self._loading(), retry_after_s=self.eta_s()) from None
        finally:
            self.arrivals.leave(arrival)

    def want(self) -> None:
        """Have it brought into memory, whatever has to go for that."""
        self._asked_s, self.impossible = self._clock(), None
        if self._wanted_s is None and self.place != "in":
            self._wanted_s = self._asked_s
        self.think()

    def _check(self) -> None:
        if self.unloaded:
            raise ModelUnavailable("The model was taken out of service.")
        if self.trouble is not None and self._clock() < self.retry_s:
            message = "The model's files cannot be fetched now."
            raise ModelUnavailable(message, retry_after_s=max(self.retry_s - self._clock(), 1.0))
        error = self.model.absence()
        if isinstance(error, ModelUnavailable) and (self.failed or self.place == "in"):
            raise error

    def _loading(self) -> str:
        return "The model is being fetched." if self.fetching is not None else "The model is being loaded."

    def eta_s(self) -> float:
        """Seconds until a request that came now could come in; infinite when it would be refused."""
        if self.unloaded or self.failed or self._clock() < self.retry_s:
            return math.inf
        if self.place == "coming" or (self.place == "in" and not self.held):
            return max(self.model.left_s(), 0.1)
        load_s = self.expected_load_s()
        if self.place == "in":
            # It has to make room for another one, and then comes back.
            return self.model.left_s() + LEAVE_S + (2 + RESIDENCY_FACTOR) * load_s
        fetched_s = 0.0 if self.fetching is None else self.fetching.progress()[1]
        return fetched_s + self.begins_s + load_s

    def expected_load_s(self) -> float:
        return self.load_s or LOAD_S_GUESS + self.size_bytes / LOAD_BYTES_PER_S

    # What the pool sees

    @property
    def state(self) -> State:
        """What it is while it has no process."""
        if self.unloaded:
            return "stopped"
        if self.fetching is not None:
            return "pulling"
        if self.trouble is not None:
            return "failed"
        return "loading" if self.wanted_s is not None or self.eager else "sleeping"

    @property
    def progress(self) -> float:
        """How much of its files is here, while these are fetched."""
        return 0.0 if self.fetching is None else self.fetching.progress()[0]

    @property
    def wanted_s(self) -> float | None:
        return self._wanted_s

    def seat(self, now_s: float) -> Seat:
        """The model for the planner. Whoever was let in and has not begun yet makes it busy."""
        busy = self.model.busy or (self.place == "in" and not self.held and len(self.arrivals) > 0)
        if busy:
            self.used_s = now_s
        if self._wanted_s is not None and not self.arrivals and now_s > self._asked_s + self.eta_s() + WANTED_S:
            self._wanted_s = None
        return Seat(
            name=self.model.name,
            size_bytes=self.size_bytes,
            place=self.place,
            wanted_s=self._wanted_s,
            eager=self.eager,
            busy=busy,
            held=self.held,
            leaving=self.leaving,
            pinned=self.pinned,
            priority=self.how.priority,
            since_s=self.since_s,
            used_s=self.used_s,
            uses=self._uses_at(now_s),
            load_s=self.expected_load_s(),
            left_s=self.model.left_s() if self.place in ("in", "coming") else 0.0,
            ttl_s=self.how.ttl_s,
        )

    @property
    def takes_part(self) -> bool:
        """Whether there is anything to plan about it."""
        return self.need is not None and not self.failed and not (self.unloaded and self.place == "out")

    def fetched(self) -> None:
        """Its files are here, or whatever kept them away is forgotten."""
        self.trouble, self.retry_s, self._fetches_failed = None, 0.0, 0

    def not_fetched(self, reason: str) -> float:
        """Send those away who wait; the seconds until another try."""
        wait_s = min(FETCH_RETRY_S * 2.0 ** min(self._fetches_failed, 10), FETCH_RETRY_S_MAX)
        self._fetches_failed += 1
        self.trouble, self.retry_s = reason, self._clock() + wait_s
        self.arrivals.send_away(ModelUnavailable("The model's files cannot be fetched now.", retry_after_s=wait_s))
        return wait_s

    def placement(self) -> Placement:
        """Its place as operators see it."""
        if self.model.busy:
            self.used_s = self._clock()
        return Placement(
            inside=self.place != "out",
            memory_bytes=self.size_bytes,
            waiting=len(self.arrivals),
            pinned=self.pinned,
            lazy=self.how.lazy,
            priority=self.how.priority,
            ttl_s=self.how.ttl_s,
            held=self.held,
            loads=self.loads,
            load_s=self.load_s,
            used_s=self.used_s if self.place == "in" else None,
        )

    def came(self, took_s: float) -> None:
        """It is in memory."""
        self.place, self.load_s = "in", took_s
        self.since_s = self.used_s = self._clock()
        self._wanted_s, self.eager = None, False
        self.loads += 1

    def went(self) -> None:
        """It is out of memory. Those that came while it was held are still there, and want it back."""
        self.place, self.held, self.leaving = "out", False, False
        if len(self.arrivals) and not self.unloaded:
            self._wanted_s = self._clock()

    def too_large(self) -> None:
        """It would not even fit when all had gone that may."""
        needs = f"The model needs {self.size_bytes >> 20} MiB of memory, more than there is for models."
        self.impossible = ModelUnavailable(needs)
        self.refuse(self.impossible)

    def refuse(self, error: AdapterError) -> None:
        """It will not come: whoever waits is told."""
        self._wanted_s, self.eager = None, False
        self.arrivals.send_away(error)
