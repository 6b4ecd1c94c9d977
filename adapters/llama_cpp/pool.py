"""What is in memory: the local models of this process by name, brought in and taken out as requests and memory demand.

`residency.plan` decides; everything here carries decisions out. Several models load at once where there is memory, one
load serves all who wait for it, and the memory of a model counts from before its load until its process is gone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import Any, Literal, Protocol

import msgspec

from adapters.errors import ModelUnavailable
from adapters.llama_cpp.residency import Plan, Rules, plan
from adapters.llama_cpp.resident import (
    FetchFailed,
    Loadable,
    Need,
    Placement,
    Residence,
    Resident,
    Source,
    Withdrawn,
)

logger = logging.getLogger(__name__)

TICK_S = 0.1
IDLE_TICK_S = 5.0


Verb = Literal["load", "unload", "sleep", "pin", "unpin", "reset"]


class Occupied(Protocol):
    """The pool as operators have it, in whatever process it is."""

    @property
    def memory_bytes_max(self) -> int: ...

    @property
    def taken_bytes(self) -> int:
        """What is taken, by what is coming and going too."""
        ...

    def placements(self) -> Mapping[str, Placement]:
        """Which place each model has, by its name."""
        ...

    async def do(self, verb: Verb, name: str, *, force: bool = False) -> bool:
        """What `Pool` does under this name; False when that is not possible now, KeyError without such a model."""
        ...


class PoolSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`memory_bytes` bounds what all models take together. Unless it was `chosen` by an operator it is an estimate: a
    model that needs more is then loaded when it is alone, and refused otherwise. Requests wait up to `wait_s_max` for
    a model. `residency_s_min` and `loads_max` are those of `residency.Rules`.
    """

    memory_bytes: int
    chosen: bool = False
    loads_max: int = 2
    residency_s_min: float | None = None
    wait_s_max: float = 30.0


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A model for a pool. `look` finds out what memory it needs; `source` brings its files here before that."""

    model: Loadable
    look: Callable[[], Awaitable[Need]]
    how: Residence = Residence()
    queue_depth_max: int = 64
    source: Source | None = None


class Pool:
    """All local models. A request asks its model's `Resident`, which looks and acts in one step."""

    def __init__(
        self,
        entries: Iterable[Entry],
        settings: PoolSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        resident_bytes: Callable[[Loadable], int] = lambda model: 0,
    ) -> None:
        """`resident_bytes` measures what a model that is loaded takes, 0 where that is not known."""
        self.settings = settings
        self._clock = clock
        self._resident_bytes = resident_bytes
        self._rules = Rules(
            memory_bytes=settings.memory_bytes,
            loads_max=settings.loads_max,
            residency_s_min=settings.residency_s_min,
        )
        self._entries = {entry.model.name: entry for entry in entries}
        self.residents = {
            name: Resident(entry.model, entry.how, entry.queue_depth_max, settings.wait_s_max, clock, self.think)
            for name, entry in self._entries.items()
        }
        self._tasks: set[asyncio.Task[None]] = set()
        self._bringing: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._changed = asyncio.Event()
        self._closed = False

    # Life

    async def start(self) -> None:
        """Begin to load what is to be there from the start; returns when each of these is there, failed, or has no
        room. One that failed does not stop the others."""
        for name, entry in self._entries.items():
            if entry.source is None:
                await self._look(name)
        self.think()
        while any(resident.eager and resident.takes_part for resident in self.residents.values()):
            await self._changed.wait()

    async def close(self) -> None:
        """Stop all workers at once; none is left when this returns."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for resident in self.residents.values():
            resident.refuse(ModelUnavailable("The server is shutting down."))
        await asyncio.gather(*(resident.model.sleep() for resident in self.residents.values()))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # What an operator does. Each raises KeyError for a model that is not there.

    def load(self, name: str) -> None:
        """Bring a model into memory, and into service if it was taken out of it."""
        resident = self.residents[name]
        resident.unloaded = resident.leaving = False
        resident.want()

    def unload(self, name: str, *, force: bool = False) -> None:
        """Take a model out of service: running requests come to their end, unless they are forced to."""
        resident = self.residents[name]
        resident.unloaded = resident.leaving = True
        resident.refuse(ModelUnavailable("The model was taken out of service."))
        if resident.place == "coming" or (force and resident.place == "in"):
            self._evict(resident)
        self.think()

    def sleep(self, name: str) -> bool:
        """Take an idle model out of memory until somebody asks for it; False when it is busy."""
        resident = self.residents[name]
        resident.eager = False
        if resident.place == "in":
            if resident.model.busy or resident.arrivals:
                return False
            self._evict(resident)
        return True

    def pin(self, name: str, pinned: bool) -> None:
        """Keep a model in memory whatever happens, or no longer."""
        self.residents[name].pinned = pinned
        self.think()

    def reset(self, name: str) -> None:
        """Forget that a model failed, look at its files anew, and try again."""
        resident = self.residents[name]
        if resident.place == "out":
            resident.need = None
        resident.failed = False
        resident.fetched()
        self.load(name)

    async def do(self, verb: Verb, name: str, *, force: bool = False) -> bool:
        """One of these by its name; False when it is not possible now."""
        match verb:
            case "unload":
                self.unload(name, force=force)
            case "sleep":
                return self.sleep(name)
            case "pin" | "unpin":
                self.pin(name, verb == "pin")
            case _:
                {"load": self.load, "reset": self.reset}[verb](name)
        return True

    # What an operator sees

    def placements(self) -> Mapping[str, Placement]:
        return {name: resident.placement() for name, resident in self.residents.items()}

    @property
    def memory_bytes_max(self) -> int:
        return self.settings.memory_bytes

    @property
    def taken_bytes(self) -> int:
        return sum(one.size_bytes for one in self.residents.values() if one.place != "out")

    # Deciding, and acting on it

    def think(self) -> None:
        """Look at all models and do what has to be done. Nothing here waits."""
        if self._closed:
            return
        now_s = self._clock()
        for resident in self.residents.values():
            self._notice(resident)
        seats = [resident.seat(now_s) for resident in self.residents.values() if resident.takes_part]
        self._carry_out(plan(seats, self._rules, now_s))
        self._changed.set()
        self._changed = asyncio.Event()
        self._look_again()

    def _notice(self, resident: Resident) -> None:
        """Take in what happened to a model since: it may have died for good, or want to be fetched."""
        if resident.place == "in" and resident.model.failed:
            self._failed(resident)
        wanted = resident.eager or resident.wanted_s is not None
        due = self._clock() >= resident.retry_s
        if resident.need is None and wanted and due and resident.model.name not in self._bringing:
            self._bringing.add(resident.model.name)
            resident.fetching = self._entries[resident.model.name].source
            self._spawn(self._bring(resident))

    def _carry_out(self, decided: Plan) -> None:
        for name in decided.evict:
            self._evict(self.residents[name])
        for name in decided.load:
            resident = self.residents[name]
            resident.place = "coming"
            self._spawn(self._load(resident))
        for name in decided.impossible:
            self.residents[name].too_large()
        for name, resident in self.residents.items():
            resident.held = name in decided.hold
            resident.begins_s = decided.begins_s.get(name, 0.0)
            if resident.arrivals and resident.open:
                resident.arrivals.let_in()
        places = [resident.place for resident in self.residents.values()]
        if "going" not in places and places.count("coming") < self._rules.loads_max:
            for resident in self.residents.values():
                if resident.eager and resident.takes_part and resident.place == "out":
                    logger.warning("there is no memory for the model %r now: it sleeps", resident.model.name)
                    resident.eager = False

    def _evict(self, resident: Resident) -> None:
        if resident.place in ("coming", "in"):
            resident.place = "going"
            self._spawn(self._take_out(resident))

    async def _take_out(self, resident: Resident) -> None:
        await resident.model.sleep()
        resident.went()
        logger.info("model %r is %s", resident.model.name, resident.state)
        self.think()

    async def _load(self, resident: Resident) -> None:
        began_s = self._clock()
        loaded = await resident.model.load()
        if loaded and resident.place == "coming":
            resident.came(self._clock() - began_s)
            taken = self._resident_bytes(resident.model)
            if taken and resident.need is not None:
                self._resize(resident, taken + resident.need.later_bytes)
            logger.info("model %r is ready", resident.model.name)
        elif resident.place == "coming" and not self._closed:
            self._failed(resident)
        self.think()

    def _failed(self, resident: Resident) -> None:
        """Its process is gone, and it will not be tried again before an operator says so."""
        resident.place, resident.failed = "out", True
        resident.refuse(resident.model.absence() or ModelUnavailable("The model failed to load."))
        logger.error("model %r failed", resident.model.name)

    async def _bring(self, resident: Resident) -> None:
        """Fetch the files of a model and look at them; what cannot be had is tried again later."""
        name = resident.model.name
        try:
            if resident.fetching is not None:
                await resident.fetching.fetch()
            await self._look(name)
            resident.fetched()
        except Withdrawn as error:
            resident.trouble = str(error)
            self.unload(name)
        except FetchFailed as error:
            wait_s = resident.not_fetched(str(error))
            logger.warning("model %r cannot be fetched, and is tried again in %.0f s: %s", name, wait_s, error)
        except Exception as error:
            resident.not_fetched(f"unexpectedly: {type(error).__name__}")
            raise
        finally:
            resident.fetching = None
            self._bringing.discard(name)
            self.think()

    async def _look(self, name: str) -> None:
        resident, limit = self.residents[name], self.settings.memory_bytes
        need = await self._entries[name].look()
        if need.size_bytes > limit and not self.settings.chosen:
            logger.warning("model %r needs %d MiB, of %d MiB there are", name, need.size_bytes >> 20, limit >> 20)
        resident.need = need
        self._resize(resident, need.size_bytes)

    def _resize(self, resident: Resident, size_bytes: int) -> None:
        """An estimated limit is no reason to refuse a model that would be alone."""
        limit = self.settings.memory_bytes
        resident.size_bytes = size_bytes if self.settings.chosen else min(size_bytes, limit)

    # Time and tasks

    def _look_again(self) -> None:
        """Idleness, residency and time to live have no events of their own: look now and then."""
        waiting = any(one.wanted_s is not None or one.arrivals or one.held for one in self.residents.values())
        delay_s = TICK_S if waiting else IDLE_TICK_S
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_later(delay_s, self._tick)

    def _tick(self) -> None:
        for resident in self.residents.values():
            taken = self._resident_bytes(resident.model) if resident.place == "in" else 0
            if taken > resident.size_bytes:
                self._resize(resident, taken)
        self.think()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a task of the pool failed unexpectedly", exc_info=error)
